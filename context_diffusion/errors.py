"""The one error type that means: the input is wrong and the message says how to mend it."""


class ContextDiffusionError(ValueError):
    """A mistake in what was given: a file, a tensor, a checkpoint, a setting.

    The message is one line that names what was got, what was expected and what to change. The command line
    prints it without a traceback and leaves with exit code 2; the nodes show it at the node.
    """
