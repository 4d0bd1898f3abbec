"""What a self-test learns of the service where its documentation says nothing. Pure: answers in, words out."""

from msgspec import Struct

from dispatcher.aws.locations import BadLocation, Location, parse_folder
from dispatcher.aws.probes import Answer
from dispatcher.model import Receipt


class Lesson(Struct, frozen=True):
    """A question to which nobody but the service knows the answer, and its answer for one endpoint."""

    endpoint: str
    question: str
    answer: str


def composition(receipt: Receipt, output_path: str | None, extension: str | None, filename: str | None) -> str:
    """How the output's location is made of the endpoint's path and what was asked for."""
    at = parse_folder(receipt.output_location)
    if isinstance(at, BadLocation):
        return f"{receipt.output_location} ({at.why})"
    rest, begins = _below(at, output_path)
    names = [(extension, "S3OutputPathExtension"), (filename, "Filename")]
    told = ", ".join(f"{name} {_honoured(rest, asked)}" for asked, name in names)
    shape = rest
    for asked, name in names:
        shape = shape.replace(asked, f"<{name}>") if asked else shape
    return f"{begins}{shape}; {told}"


def _below(at: Location, output_path: str | None) -> tuple[str, str]:
    """The part of the key that is not the endpoint's path, and what stands before it."""
    folder = parse_folder(output_path) if output_path else None
    if not isinstance(folder, Location):
        return at.key, f"s3://{at.bucket}/"
    prefix = folder.key.rstrip("/")
    prefix = f"{prefix}/" if prefix else ""
    if at.bucket == folder.bucket and at.key.startswith(prefix):
        return at.key.removeprefix(prefix), "<S3OutputPath>/"
    return at.key, f"not below S3OutputPath: s3://{at.bucket}/"


def _honoured(key: str, asked: str | None) -> str:
    if asked is None:
        return "not asked for"
    return "honoured" if asked in key else "NOT honoured"


def failure(receipt: Receipt, failure_path: str | None, known: bool) -> str:
    """Whether a failure location is promised. `known`: the endpoint's configuration could be read."""
    configured = "the endpoint has an S3FailurePath" if failure_path else "the endpoint has none configured"
    said = "given" if receipt.failure_location else "not given"
    return f"{said}; {configured if known else 'its configuration could not be read'}"


def refusal(answer: Answer) -> str:
    """What the service says to a request that it should refuse."""
    return answer.text if answer.fault is not None else f"TAKEN: {answer.text}, as if it were a job"


def duplicate(same_location: bool, again: bool | None) -> str:
    """What a second submission with one InferenceId does."""
    where = "the same OutputLocation" if same_location else "another OutputLocation"
    ran = {True: "and it ran again", False: "and no second run was seen", None: "whether it ran again does not show"}
    return f"taken again (202) with {where}, {ran[again]}"
