import pytest

from groupvit_jax.data.text.names import check_known, keys_of, nearest


def test_spellings_and_synonyms_are_one_name():
    assert keys_of(["Red_Panda", "person| people"]) >= {"red panda", "person", "people"}
    check_known(["RED-panda", "People", "person|people"], ["red panda", "person|people"], "here")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"prompts: 'peple' is none of the 2 names found, .* is 'people'$"
    ):
        check_known(["red panda", "peple"], ["red_panda", "person|people"], "prompts")
    assert nearest("x", []) == ""
