"""
The benchmark: what is to be reached, measured in one interleaved run.

    python -m tests.bench [--rounds 3] [--only P7 P9] [--peers naive quix | none] [--quick]

Prints the table of P1 to P12 and writes it with the plots and all figures to `--out`. The exit
code says whether all that was measured was reached.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import monotonic

import uvloop

from tests.bench import bulk_load, export, report, workloads
from tests.bench.alone import stages, under_index, upserted_and_copied
from tests.bench.figures import Fresh, Seen, verdicts
from tests.bench.load import Load, publish
from tests.bench.measure import Run, work_off
from tests.bench.peers.registry import PEERS, Peer
from tests.bench.servers import Provider, Servers
from tests.bench.subject import Other
from tests.bench.telemetry_cost import telemetry_us
from tests.support.verdicts import lines

OUT = Path("build/bench")
FIGURES = (*(f"P{number}" for number in range(1, 13)), "export")
NOBODY = "none"
Step = Callable[[], Awaitable[None]]


class Bench:
    """All measurements, each of which adds to what was seen."""

    def __init__(self, servers: Servers, options: argparse.Namespace) -> None:
        self.seen = Seen()
        self._servers = servers
        self._events = 3_000 if options.quick else 12_000
        self._peer_events = 600 if options.quick else 2_400
        self._seconds = 6.0 if options.quick else 20.0
        self._peers = [
            peer for peer in PEERS if not options.peers or peer.name in options.peers
        ]

    def rounds(self) -> dict[str, tuple[set[str], Step]]:
        """Return what is done in every round, and the figures that need it."""
        peers = {f"W1, {peer.title}": ({"P1", "P10"}, self._peer(peer)) for peer in self._peers}
        return {
            "stages alone": ({"P1"}, self._stages),
            "W1 new documents, W3 unchanged ones": (
                {"P1", "P2", "P4", "P5", "P8", "P10"},
                self._backlog,
            ),
            **peers,
            "upserts, and COPY": ({"P3"}, self._upserts),
            "W2 under HNSW, and bare INSERTs": ({"P3"}, self._indexed),
            "telemetry": ({"P6"}, self._telemetry),
            "W5 provider-bound": ({"P7"}, self._provider_bound),
            "P9 freshness at half load": ({"P9"}, self._fresh),
        }

    def once(self) -> dict[str, tuple[set[str], Step]]:
        """Return what is done once, after the rounds."""
        return {
            "W4 edits of one sentence": ({"P11"}, self._edits),
            "W6 quota-bound": ({"P7"}, self._quota_bound),
            "W7 ten times too much": ({"P5"}, self._overloaded),
            "W8 skewed tenants": ({"P12"}, self._skewed),
            "1 and 8 workers": ({"P9"}, self._scaled),
            "bulk load, and inserts under HNSW": ({"P3"}, self._bulk_loaded),
            "export": ({"export"}, self._exported),
        }

    async def _stages(self) -> None:
        self.seen.stages.append(await stages(self._servers))

    async def _backlog(self) -> None:
        first, unchanged, replayed = await workloads.backlog(self._servers, self._events)
        self.seen.first.append(first)
        self.seen.unchanged.append(unchanged)
        self.seen.replayed.append(replayed)

    def _peer(self, peer: Peer) -> Step:
        async def run() -> None:
            seen = await against(self._servers, peer, self._peer_events)
            self.seen.peers.setdefault(peer.name, []).append(seen)

        return run

    async def _upserts(self) -> None:
        upserts, whole = await upserted_and_copied(self._servers)
        self.seen.upserts.append(upserts)
        self.seen.stored.append(whole)

    async def _indexed(self) -> None:
        count = self._events // 8
        run = await workloads.indexed(self._servers, count)
        chunks = run.provider["inputs"] / count
        self.seen.indexed.append(await under_index(self._servers, run.rate * chunks, count))

    async def _telemetry(self) -> None:
        self.seen.telemetry_us.append(await telemetry_us())

    async def _provider_bound(self) -> None:
        share = await workloads.provider_bound(self._servers, self._seconds)
        self.seen.provider_bound.append(share)

    async def _fresh(self) -> None:
        latency = 0.03
        taken = await workloads.taken(self._servers, self._seconds / 2, latency)
        delays = await workloads.fresh(self._servers, taken / 2, self._seconds, latency)
        self.seen.fresh.append(Fresh(delays, 1000 * latency, taken))

    async def _edits(self) -> None:
        self.seen.edits = await workloads.edited(self._servers, self._events // 40)

    async def _quota_bound(self) -> None:
        share = await workloads.quota_bound(self._servers, 2 * self._seconds)
        self.seen.quota_bound.append(share)

    async def _overloaded(self) -> None:
        self.seen.overloaded.append(await workloads.overloaded(self._servers, self._seconds))

    async def _skewed(self) -> None:
        self.seen.skewed.append(await workloads.skewed(self._servers, self._seconds / 2))

    async def _scaled(self) -> None:
        one, eight = [
            await workloads.scaled(self._servers, workers, self._seconds) for workers in (1, 8)
        ]
        self.seen.scaled.append((one, eight))

    async def _bulk_loaded(self) -> None:
        self.seen.others += await bulk_load.measure(self._servers.postgres)

    async def _exported(self) -> None:
        self.seen.others += await asyncio.to_thread(export.measure)


async def against(servers: Servers, peer: Peer, count: int) -> Run:
    """Let a peer work off the same kind of backlog as the workers."""
    load = Load(workloads.SEED)
    topic = await servers.topic(peer.name)
    async with Provider() as provider, Other(servers, topic, provider.url, peer=peer) as other:
        await publish(servers.kafka.bootstrap_servers, topic, load.take(count))
        await other.start()
        run = await work_off(servers, other, provider, load, count)
    await servers.settle()
    return run


async def bench(options: argparse.Namespace) -> int:
    """Run what was asked for; return the exit code."""
    began = monotonic()
    async with Servers() as servers:
        measuring = Bench(servers, options)
        for number in range(options.rounds):
            await _run(measuring.rounds(), options.only, f"round {number + 1}")
        await _run(measuring.once(), options.only, "once")
        found = verdicts(measuring.seen)
        versions = await servers.versions()
    _say("", *lines(found, words=("reached", "NOT REACHED")))
    path = report.write(options.out, measuring.seen, found, versions, monotonic() - began)
    _say("", f"the report is in {path}")
    return 1 if any(verdict.held is False for verdict in found) else 0


async def _run(steps: dict[str, tuple[set[str], Step]], only: Sequence[str], when: str) -> None:
    for name, (figures, step) in steps.items():
        if only and not figures & set(only):
            continue
        sys.stdout.write(f"{when}: {name} ... ")
        sys.stdout.flush()
        began = monotonic()
        await step()
        _say(f"{monotonic() - began:.0f} s")


def _say(*what: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in what))
    sys.stdout.flush()


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        choices=FIGURES,
        help="figures to measure",
        metavar="P7",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        default=[],
        choices=[*(peer.name for peer in PEERS), NOBODY],
        help=f"whom to compare with; {NOBODY!r}: nobody",
    )
    parser.add_argument("--quick", action="store_true", help="small loads: a try-out")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the report")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(uvloop.run(bench(parsed())))
