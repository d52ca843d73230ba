"""The one error that bad input ends in."""


class InputError(ValueError):
    """Something the user wrote or supplied cannot be used.

    The message names the place (a file, a config key, an argument), what was found there, what was expected, and what to
    do. Scripts print it as one message without a traceback and exit with status 1.
    """

    def __init__(self, place: str, found: str, expected: str, remedy: str = ""):
        self.place, self.found, self.expected, self.remedy = place, found, expected, remedy
        message = f"{place}: found {found}; expected {expected}."
        super().__init__(f"{message} {remedy}" if remedy else message)

    def __reduce__(self):
        return type(self), (self.place, self.found, self.expected, self.remedy)
