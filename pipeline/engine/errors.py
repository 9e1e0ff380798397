"""What a unit, a device or an output can fail by, as its driver tells them apart."""


class UnitError(Exception):
    """A unit failed, and not by what its rows are; the message says why."""


class SourceError(UnitError):
    """Rows cannot be read now; another try may succeed."""


class DeviceError(UnitError):
    """This device cannot label the rows; another one may."""


class OutputError(UnitError):
    """Nothing can be written: no use in trying other units."""


class WorkerLostError(UnitError):
    """The worker died, or its node is gone; another worker may label the rows."""
