"""What is fetched from the Hub, kept, and read of its cards."""

import pytest
from tests._helpers.hub_server import hub

from tutelage.hub_files import folder_of, licence_in

CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"


def test_what_may_be_missing_is_done_without_where_the_hub_is_out_of_reach(tmp_path, monkeypatch):
    with hub(monkeypatch, tmp_path / "cache") as server:
        server.repositories["me/x"] = {"config.json": b"{}", "README.md": CARD}
        first = folder_of("me/x", ("*.json",), what="model")
        assert {path.name for path in first.iterdir()} == {"config.json"}
    kept = folder_of("me/x", ("*.json",), what="model", optional=("README.md",))
    assert kept == first
    with hub(monkeypatch, tmp_path / "cache") as server:
        server.repositories["me/x"] = {"config.json": b"{}", "README.md": CARD}
        assert licence_in(folder_of("me/x", ("*.json",), what="model", optional=("README.md",)) / "README.md")


@pytest.mark.parametrize(
    ("content", "licence"),
    [
        (CARD, "apache-2.0"),
        (b"---\nlicense: [mit, cc-by-4.0]\n---\n", "mit, cc-by-4.0"),
        (b"---\nlicense:\n---\n", None),
        (b"---\ntags: [x]\n---\n", None),
        (b"---\n- a list\n---\n", None),
        (b"---\nlicense: [\n---\n", None),
        (b"# without front matter\nlicense: mit\n", None),
        (b"\xff\xfe", None),
        (b"", None),
        (None, None),
    ],
)
def test_the_licence_that_a_card_says(tmp_path, content, licence):
    if content is not None:
        (tmp_path / "README.md").write_bytes(content)
    assert licence_in(tmp_path / "README.md") == licence
