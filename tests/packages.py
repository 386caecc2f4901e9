"""Packages as pip installs them, for tests of what is found in them."""

from pathlib import Path


def install(site: Path, name: str, files: dict[str, bytes]) -> None:
    """Put a package of version 1.0 into a folder for packages; its code fails when it is imported."""
    module = name.replace("-", "_")
    files = {f"{module}/__init__.py": b"raise AssertionError('imported')", **files}
    information = f"{module}-1.0.dist-info"
    files[f"{information}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    files[f"{information}/RECORD"] = "".join(f"{path},,\n" for path in files).encode()
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
