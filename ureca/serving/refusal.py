"""Why a request ends without what it asked for."""

from ureca.errors import DataError, UrecaError
from ureca.serving.answers import Problem, ProblemType

_TYPES: dict[int, ProblemType] = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(UrecaError):
    """A request is refused, or its work was lost; says so in HTTP's terms.

    Args:
        status: of the answer.
        code: what went wrong in a few snake_case letters.
        message: the particulars, for people; never holds images or tokens.
        param: the field and item at fault.
        retry_after_s: when the same request may succeed.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.problem = Problem(
            message=message, type=problem_type(status), code=code, param=param, retry_after_s=retry_after_s
        )

    def __str__(self) -> str:
        where = f"{self.problem.param}: " if self.problem.param else ""
        return f"{self.status} {self.problem.code}: {where}{self.problem.message}"

    @classmethod
    def of_data(cls, error: DataError, param: str) -> "Refusal":
        """For an image or an annotation that cannot be used: status 422."""
        return cls(422, error.kind, error.message, param=param)


def problem_type(status: int) -> ProblemType:
    """OpenAI's name for the kind of an error."""
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
