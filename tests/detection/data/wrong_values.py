"""A JSON with one value after the other in it replaced by what does not belong there."""

import json

NAN, INF = float("nan"), float("inf")
VALUES = [None, True, -1, 0, 1, 2**60, 10**400, 0.5, NAN, INF, -INF, 1e308, "", "car", "a\x1b[2J\n", "\ud800", "\0"]
VALUES += [[], {}, [[]], [1, 2, 3, 4], {"id": 1}, "../../etc/passwd", "/dev/zero", "x" * 300]


def refusals(path, content, load):
    """Write each JSON to a path and load it; what could be loaded, and the messages of the one-line errors.

    Any other exception passes.
    """
    loaded, messages = [], []
    for place in _places(content):
        for value in VALUES:
            path.write_text(json.dumps(changed(content, place, value)))
            try:
                loaded.append(load())
            except (ValueError, FileNotFoundError) as error:
                messages.append(str(error))
    for message in messages:
        assert message.isprintable()
        assert len(message) < 1500
    return loaded, messages


def changed(content, place, value):
    """The content with another value at a place, the path of keys and indices to it."""
    if not place:
        return value
    copy = json.loads(json.dumps(content))
    item = copy
    for key in place[:-1]:
        item = item[key]
    item[place[-1]] = value
    return copy


def _places(value, place=()):
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from _places(part, (*place, key))
