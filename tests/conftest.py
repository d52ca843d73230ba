"""What every test relies on."""

import signal

# A shell that starts the tests in the background leaves SIGINT ignored, and so it would be in every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
