"""Reference implementations of the methods of ten papers, and the parts of the workflow that re-tests their claims.

Nothing is imported here, so that `import reclaim.X` costs what X costs and no more.
"""
