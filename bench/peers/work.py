"""What a contender is timed at."""
from dataclasses import dataclass
from timeit import Timer


@dataclass
class Work:
    """A Python expression and its names. timeit compiles it into the loop, so no wrapper's call is timed."""
    expression: str
    names: dict

    def timer(self):
        return Timer(self.expression, globals=self.names).timeit

    def function(self):
        return eval(f"lambda: {self.expression}", self.names)
