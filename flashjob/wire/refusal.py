# SPDX-License-Identifier: Apache-2.0
"""The judge's no, the same error on both sides of the wire."""

from flashjob.errors import FlashJobError

from .gateway import Problem


class Refused(FlashJobError):
    """The judge's own no; `problem` is what it said."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason, problem.message, problem.next_step)
        self.problem = problem
