def items(options):
    return {}


def report(entries):
    return {}
