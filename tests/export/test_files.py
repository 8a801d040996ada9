"""A file or folder is there whole, or as it was before."""

import pytest

from tfkd.export import replacing


def test_replacing_puts_files_and_folders_in_place(tmp_path):
    for text in ("old", "new"):
        with replacing(tmp_path / "deep" / "file.txt") as file:
            assert file.suffix == ".txt"
            file.write_text(text)
        with replacing(tmp_path / "folder") as folder:
            folder.mkdir()
            (folder / text).write_text(text)
    assert _contents(tmp_path) == {
        "deep/file.txt": b"new",
        "folder/new": b"new",
    }


@pytest.mark.parametrize("name", ["file.txt", "folder", "missing/x"])
def test_replacing_changes_nothing_when_the_body_raises(tmp_path, name):
    (tmp_path / "file.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    before = _contents(tmp_path)

    def write_half(write):
        with replacing(tmp_path / name) as temporary:
            write(temporary)
            raise KeyboardInterrupt

    for write in (lambda p: p.mkdir(), lambda p: p.write_text("half")):
        with pytest.raises(KeyboardInterrupt):
            write_half(write)
    assert _contents(tmp_path) == before
    assert not (tmp_path / "missing").exists()


def test_replacing_keeps_files_and_folders_apart(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    before = _contents(tmp_path)
    with (
        pytest.raises(FileExistsError, match="is a folder"),
        replacing(tmp_path / "folder") as temporary,
    ):
        temporary.write_text("new")
    with (
        pytest.raises(FileExistsError, match="is a file"),
        replacing(tmp_path / "file") as temporary,
    ):
        temporary.mkdir()
    assert _contents(tmp_path) == before


def test_replacing_follows_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as folder:
        folder.mkdir()
        (folder / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "new").read_text() == "new"


def _contents(folder):
    """Relative path -> bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
