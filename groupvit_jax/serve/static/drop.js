// Takes photos from files, drops, the clipboard, the camera and the examples, and sends them as
// data URLs in the event itself: Gradio's own upload would write them to a folder.
const find = selector => element.querySelector(selector);
const target = find(".target"), input = find("input"), video = find("video");

function complain(text) {
  find(".problem").textContent = text;
  find(".problem").hidden = !text;
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({name: file.name || "pasted photo", data: reader.result});
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function send(list) {
  const files = [...list];
  if (!files.length) return;
  complain("");
  const size = files.reduce((sum, file) => sum + file.size, 0) / 1e6;
  if (files.length > props.most)
    return complain(`${files.length} photos found, expected at most ${props.most} at once.`);
  if (size > props.megabytes)
    return complain(`${size.toFixed(1)} megabytes found, expected at most ${props.megabytes}.`);
  try {
    trigger("upload", {files: await Promise.all(files.map(read))});
  } catch (error) {
    complain(`A photo could not be read: ${error.message}.`);
  }
}

target.addEventListener("click", event => {
  if (!event.target.closest(".camera") && event.target !== input) input.click();
});
target.addEventListener("keydown", event => {
  if (event.target === target && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    input.click();
  }
});
input.addEventListener("change", () => {
  send(input.files);
  input.value = "";  // the same file may be chosen again
});

// The whole window takes what is dropped or pasted; a missed drop would leave the page.
for (const name of ["dragover", "dragleave", "drop"])
  window.addEventListener(name, event => {
    event.preventDefault();
    target.classList.toggle("over", name === "dragover");
    if (name === "drop") send(event.dataTransfer.files);
  });
window.addEventListener("paste", event => {
  const files = [...event.clipboardData.files].filter(file => file.type.startsWith("image/"));
  if (files.length) {
    event.preventDefault();
    send(files);
  }
});

function stop() {
  (video.srcObject ? video.srcObject.getTracks() : []).forEach(track => track.stop());
  video.srcObject = null;
  find(".webcam").hidden = true;
  target.hidden = false;
}

find(".camera").addEventListener("click", async () => {
  complain("");
  // Browsers offer the camera only to pages of this machine and over HTTPS.
  if (!navigator.mediaDevices)
    return complain("The camera needs a page on this machine (127.0.0.1) or over HTTPS.");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({video: true});
  } catch (error) {
    return complain(`The camera could not be opened: ${error.message}.`);
  }
  target.hidden = true;
  find(".take").disabled = true;  // before the first frame a photo would have no pixels
  find(".webcam").hidden = false;
  await video.play();
  find(".take").disabled = false;
});
find(".stop").addEventListener("click", stop);
find(".take").addEventListener("click", () => {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  stop();
  canvas.toBlob(blob => send([new File([blob], "camera.jpg")]), "image/jpeg", 0.95);
});

element.addEventListener("click", event => {
  const example = event.target.closest("[data-example]");
  if (!example) return;
  complain("");
  trigger("upload", {example: Number(example.dataset.example)});
});
