"""Runs that end as when a user stops them."""

from torchqat.runs.progress import Progress


class Interrupting(Progress):
    """Stops as a user does, once ``step`` steps are taken."""

    def __init__(self, step):
        super().__init__(quiet=True)
        self.step = step

    def steps(self, what, total):
        def show(step, _figures):
            if step == self.step:
                raise KeyboardInterrupt

        return show
