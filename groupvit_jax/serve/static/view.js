// Shows segmented photos: labels, one label's score or the groups of a stage over the photo.
// Everything it needs is in the value, so that looking around asks the server for nothing.
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
const CANVAS_SIDE = 1024;  // smaller photos are drawn enlarged, with smooth edges
const DIMMED = 0.2;

const make = (tag, attributes = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
};
const button = (text, onclick, pressed) => {
  const node = make("button", {type: "button", textContent: text, onclick});
  if (pressed !== undefined) node.setAttribute("aria-pressed", pressed);
  return node;
};

const canvas = make("canvas"), tip = make("div", {className: "tip", hidden: true});
const parts = Object.fromEntries(
  ["messages", "thumbs", "modes", "figure", "legend", "named", "downloads"]
    .map(name => [name, make("div", {className: name})]));
const opacity = make("input", {type: "range", min: 0, max: 100, value: 60});
opacity.setAttribute("aria-label", "Opacity");
parts.messages.setAttribute("role", "alert");
parts.named.setAttribute("aria-live", "polite");
parts.figure.append(canvas, tip);
const root = make("div", {className: "view"}, ...Object.values(parts));

let items = [], current = 0, mode = "labels", scored = null, lit = null, picked = null, turn = 0;
let maps = null;  // of the current photo: {photo, labels, groups: [...], score: {name, grey}}

const result = () => items[current] && items[current].result;
const percent = value => value >= 0.1 ? `${Math.round(100 * value)} %` : `${(100 * value).toFixed(1)} %`;

function picture(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}

async function bytes(url) {  // the grey levels of a PNG
  const image = await picture(url);
  const copy = make("canvas", {width: image.naturalWidth, height: image.naturalHeight});
  const context = copy.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, copy.width, copy.height).data;
  const grey = new Uint8Array(rgba.length / 4);
  for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
  return {grey, width: copy.width, height: copy.height};
}

const rgb = colour => [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16));

// Returns a canvas in the size of a map, with the colour [r, g, b, alpha] of each of its values.
function painted(map, colour) {
  const table = Array.from({length: 256}, (_, value) => colour(value) || [0, 0, 0, 0]);
  const layer = make("canvas", {width: map.width, height: map.height});
  const context = layer.getContext("2d"), pixels = context.createImageData(map.width, map.height);
  for (let i = 0; i < map.grey.length; i++) pixels.data.set(table[map.grey[i]], 4 * i);
  context.putImageData(pixels, 0, 0);
  return layer;
}

function heat(value) {  // 0 to 1
  const at = value * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((c, i) => Math.round(c + (HEAT[low + 1][i] - c) * (at - low)));
}

function layer() {
  const strength = 2.55 * opacity.value, found = result();
  if (mode === "labels")
    return painted(maps.labels, i => found.labels[i] && (found.labels[i].background
      ? [0, 0, 0, strength * (lit === null || lit === i ? 0.6 : DIMMED)]
      : [...rgb(found.labels[i].colour), strength * (lit === null || lit === i ? 1 : DIMMED)]));
  if (mode === "score")
    return maps.score && painted(maps.score, i => [...heat(i / 255), 1.4 * strength * Math.min(1, i / 96)]);
  const stage = found.groups[mode];
  return painted(maps.groups[mode], i => stage.colours[i] && [...rgb(stage.colours[i]), strength]);
}

function outline(map, value) {  // the rim of one group
  const {grey, width, height} = map, rim = new Uint8Array(grey.length);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++)
      rim[i] = grey[i] === value && (
        x === 0 || y === 0 || x === width - 1 || y === height - 1 || grey[i - 1] !== value ||
        grey[i + 1] !== value || grey[i - width] !== value || grey[i + width] !== value) ? 1 : 0;
  return painted({grey: rim, width, height}, i => i && [255, 255, 255, 255]);
}

function draw() {
  if (!maps) return;
  const {naturalWidth: width, naturalHeight: height} = maps.photo;
  const scale = Math.max(1, CANVAS_SIDE / Math.max(width, height));
  canvas.width = Math.round(scale * width);
  canvas.height = Math.round(scale * height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  const put = image => image && context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (mode === "score") context.filter = "grayscale(1) brightness(0.85)";  // so that heat stands out
  put(maps.photo);
  context.filter = "none";
  if (!result()) return;
  put(layer());
  if (picked !== null) put(outline(maps.groups.at(-1), picked));
}

function at(map, event) {  // the map's value below the pointer
  const box = canvas.getBoundingClientRect();
  const cell = (value, length, size) => Math.min(size - 1, Math.max(0, Math.floor(value / length * size)));
  const x = cell(event.clientX - box.left, box.width, map.width);
  return map.grey[cell(event.clientY - box.top, box.height, map.height) * map.width + x];
}

function told(event) {  // what the tooltip says
  const found = result();
  if (mode === "labels") return found.labels[at(maps.labels, event)].name;
  if (mode === "score") {
    const label = found.labels.find(each => each.name === scored);
    return maps.score && `${scored} ${(at(maps.score, event) / 255 * label.peak).toFixed(2)}`;
  }
  return `group ${at(maps.groups[mode], event) + 1}`;
}

canvas.addEventListener("pointermove", event => {
  if (!result() || !maps) return;
  const text = told(event), box = parts.figure.getBoundingClientRect();
  tip.textContent = text || "";
  tip.hidden = !text;
  tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4)}px`;
  tip.style.top = `${event.clientY - box.top + 14}px`;
  if (mode === "labels") light(at(maps.labels, event));
});
canvas.addEventListener("pointerleave", () => {
  tip.hidden = true;
  light(null);
});
canvas.addEventListener("click", event => {
  if (!result() || !maps || !maps.groups.length) return;
  const group = at(maps.groups.at(-1), event);
  picked = picked === group ? null : group;
  name();
  draw();
});
opacity.addEventListener("input", draw);

function light(index) {
  if (lit === index) return;
  lit = index;
  for (const chip of parts.legend.querySelectorAll("[data-index]"))
    chip.classList.toggle("lit", Number(chip.dataset.index) === index);
  draw();
}

async function show(next, label = scored) {
  mode = next;
  lit = null;
  if (mode === "score") await load(label);
  modes();
  legend();
  draw();
}

async function load(label) {
  const known = result().labels.filter(each => each.score).sort((a, b) => b.share - a.share);
  const chosen = known.find(each => each.name === label) || known[0];
  scored = chosen.name;
  maps.score = await bytes(chosen.score);
}

function modes() {
  const found = result();
  const stages = found ? found.groups.map((_, i) => [i, found.groups.length > 1 ? `Groups ${i + 1}` : "Groups"]) : [];
  parts.modes.replaceChildren(...(found ? [
    make("span", {className: "tabs"}, ...[["labels", "Labels"], ["score", "Score"], ...stages].map(
      ([key, text]) => button(text, () => show(key), mode === key))),
    make("label", {className: "opacity"}, "Opacity", opacity),
  ] : []));
}

function chip(label, index) {
  const text = mode === "score" ? label.peak.toFixed(2) : percent(label.share);
  const swatch = make("i");
  swatch.style.background = label.background ? "#444" : label.colour;
  const node = make("button", {type: "button", onclick: () => label.score && show("score", label.name)},
    ...(mode === "score" ? [] : [swatch]), label.name, make("small", {textContent: text}));
  node.dataset.index = index;
  node.title = label.score ? `Show the score of ${label.name}` : label.name;
  if (mode === "score") node.setAttribute("aria-pressed", label.name === scored);
  else {
    node.onpointerenter = node.onfocus = () => light(index);
    node.onpointerleave = node.onblur = () => light(null);
  }
  return node;
}

function legend() {
  const found = result();
  if (!found) return parts.legend.replaceChildren();
  const all = found.labels.map((label, index) => [label, index]);
  if (mode === "labels") {
    const seen = all.filter(([label]) => label.share > 0).sort((a, b) => b[0].share - a[0].share);
    const absent = all.filter(([label]) => !(label.share > 0)).map(([label]) => label.name);
    parts.legend.replaceChildren(...seen.map(pair => chip(...pair)),
      ...(absent.length ? [make("p", {textContent: `Not found: ${absent.join(", ")}`})] : []));
  } else if (mode === "score") {
    const scale = make("span", {className: "scale"}, "0", make("i"),
      found.labels.find(label => label.name === scored).peak.toFixed(2));
    const known = all.filter(([label]) => label.score).sort((a, b) => b[0].peak - a[0].peak);
    parts.legend.replaceChildren(scale, ...known.map(pair => chip(...pair)));
  } else {
    parts.legend.replaceChildren(make("p", {textContent:
      `Stage ${mode + 1} merged the photo into ${found.groups[mode].count} groups, whatever the labels.`}));
  }
}

function name() {
  const found = result();
  if (!found || !found.names.length) return parts.named.replaceChildren();
  if (picked === null)
    return parts.named.replaceChildren(make("p", {textContent: "Click the photo to name a segment."}));
  const most = Math.max(...found.names[picked].map(pair => pair[1]), 1e-6);
  parts.named.replaceChildren(make("p", {textContent: "Nearest to this segment:"}),
    make("ol", {}, ...found.names[picked].map(([text, value]) => {
      const bar = make("i");
      bar.style.width = `${Math.max(0, 100 * value / most)}%`;
      return make("li", {}, make("span", {textContent: text}), make("b", {}, bar),
        make("small", {textContent: value.toFixed(2)}));
    })));
}

function save(href, ending) {
  const stem = items[current].photo.name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "_");
  make("a", {href, download: `${stem.slice(0, 60)}_${ending}`}).click();
}

function downloads() {
  const found = result();
  parts.downloads.replaceChildren(...(found ? [
    button("Download mask", () => save(found.download, "mask.png")),
    button("Download picture", () => canvas.toBlob(blob => {
      const url = URL.createObjectURL(blob);
      save(url, mode === "labels" ? "labels.png" : mode === "score" ? "score.png" : "groups.png");
      setTimeout(() => URL.revokeObjectURL(url), 60000);
    })),
    button("Download labels", () => save("data:application/json," + encodeURIComponent(
      JSON.stringify({labels: found.labels.map(label => label.name)}, null, 2)), "labels.json")),
  ] : []));
}

function thumbs() {
  parts.thumbs.replaceChildren(...(items.length < 2 ? [] : items.map((item, index) => {
    const node = make("button", {type: "button", title: item.photo.name, onclick: () => open(index)},
      make("img", {src: item.photo.url, alt: item.photo.name}));
    node.setAttribute("aria-pressed", index === current);
    node.classList.toggle("waiting", !item.result);
    return node;
  })));
}

async function open(index) {
  const mine = ++turn, item = items[index];
  if (index !== current) picked = null;
  current = index;
  const found = item && item.result;
  const [photo, labels, groups] = item ? await Promise.all([
    picture(item.photo.url), found && bytes(found.mask),
    found ? Promise.all(found.groups.map(stage => bytes(stage.map))) : [],
  ]) : [];
  if (mine !== turn) return;  // a later value or photo came in between
  maps = item ? {photo, labels, groups} : null;
  if (typeof mode === "number" && found && mode >= found.groups.length) mode = "labels";
  if (mode === "score" && found) await load(scored);
  root.classList.toggle("empty", !item);
  canvas.setAttribute("aria-label", item ? item.photo.name : "");
  canvas.setAttribute("role", "img");
  thumbs(), modes(), legend(), name(), downloads(), draw();
}

async function update() {
  if (!element.contains(root)) element.append(root);
  const value = props.value || {items: [], messages: [], busy: false};
  const fresh = value.items.length !== items.length ||
    value.items.some((item, i) => item.photo.url !== items[i].photo.url);
  items = value.items;
  parts.messages.replaceChildren(...value.messages.map(text => make("p", {textContent: text})));
  if (fresh) [current, picked] = [0, null];
  await open(Math.min(current, Math.max(0, items.length - 1)));
  root.classList.toggle("busy", value.busy);
  root.dataset.shown = value.busy ? "" : String(items.length);  // the browser tests wait for it
}

watch("value", update);
update();
