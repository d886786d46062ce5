"""Names with unseen characters."""

from sppdet.data.names import clean_name, file_key, name_key


def test_joiners_stay_where_scripts_and_emoji_need_them():
    family = "\U0001f468\u200d\U0001f469"
    assert clean_name(family) == family and clean_name("\ufefffamily\u00ad") == "family"


def test_keys():
    assert name_key("Traffic_Light") == name_key("traffic light\u200d") != name_key("traffic lights")
    assert file_key("A\u0301.JPG") == file_key("\u00e1.jpg") != file_key("a.jpg")
