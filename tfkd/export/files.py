"""Files and folders that are there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import uuid


@contextlib.contextmanager
def replacing(path):
    """A temporary name for what shall be at `path` when it is complete.

    What was at `path` stays there until then: a file is replaced at once, a
    folder by two renames. If the body raises, all is as before. A killed
    process leaves at most the temporary name, which begins with a dot.

    Args:
        path: Path of a file or folder to write. Missing parents are made.

    Yields:
        A `pathlib.Path` in the same folder, with the same suffix, where the
        body writes a file or a folder.

    Raises:
        FileExistsError: If a folder would replace a file, or the reverse.
        FileNotFoundError: If the body wrote nothing.
        OSError: If the folder cannot be written to.
    """
    path = pathlib.Path(os.path.realpath(path))
    made = [parent for parent in path.parents if not parent.exists()]
    token = uuid.uuid4().hex[:8]
    new = path.with_name(f".new-{token}-{path.name}")
    old = path.with_name(f".old-{token}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        if path.exists() and path.is_dir() != new.is_dir():
            kinds = ("file", "folder")
            raise FileExistsError(
                f"'{path}' is a {kinds[path.is_dir()]}; it is not replaced "
                f"by a {kinds[new.is_dir()]}."
            )
        if path.is_dir():
            os.rename(path, old)
            try:
                os.rename(new, path)
            except BaseException:
                os.rename(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(new, path)
    except BaseException:
        _remove(new)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
