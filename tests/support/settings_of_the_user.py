"""Settings in a file of their own, as a user may have them: no part of the package that a field is in."""

scale, table = 1.0, {"scale": 1.0}


class Options:
    scale, deep = 1.0, (1.0,)


class Table(dict):
    """With an access of its own."""

    def __getitem__(self, key):
        return self.get(key)


options, entries = Options(), Table(scale=1.0)


def read():
    return scale
