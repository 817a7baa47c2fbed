"""A flag of pytest's own for the benchmarks."""


def pytest_addoption(parser):
    parser.addoption("--grid", choices=("quick", "small", "full"), default="small",
                     help="the shapes that pytest bench times")
