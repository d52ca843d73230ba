"""The self-contained report: `build` assembles the page, `figures` draws, `figures_<system>` says what a system
shows.
"""
