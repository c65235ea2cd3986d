"""Every number that the project states about speed, measured beside the peers it is compared with.

`python -m benchmarks loader` writes `loader.json`, `loader.md` and a plot; `--quick` is a check
that all of it works. A benchmark is a module that lists contestants; `measure` runs them in turn,
`results` writes what came out.
"""
