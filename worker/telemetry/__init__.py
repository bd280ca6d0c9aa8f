from worker.telemetry.counters import Buckets, Counters
from worker.telemetry.facade import METRICS_CONTENT_TYPE, Telemetry
from worker.telemetry.instruments import INSTRUMENTS, Instrument, Kind
from worker.telemetry.logs import configure_logging, work_fields
from worker.telemetry.loop_watch import LoopLag, StallWatchdog, debug_loop
from worker.telemetry.memory_growth import MemoryGrowth
from worker.telemetry.tracing import Tracing, current_traceparent, span_context_of, trace_id_of

__all__ = [
    "INSTRUMENTS",
    "METRICS_CONTENT_TYPE",
    "Buckets",
    "Counters",
    "Instrument",
    "Kind",
    "LoopLag",
    "MemoryGrowth",
    "StallWatchdog",
    "Telemetry",
    "Tracing",
    "configure_logging",
    "current_traceparent",
    "debug_loop",
    "span_context_of",
    "trace_id_of",
    "work_fields",
]
