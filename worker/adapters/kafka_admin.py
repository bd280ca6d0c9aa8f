"""
Kafka's admin client, opened for one job and always closed.

Its errors come out in our words, and no call waits longer than the job may take.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient

from worker.adapters.kafka_client import client_arguments, milliseconds
from worker.adapters.kafka_errors import translated
from worker.config import KafkaOptions

REQUEST_SECONDS = 10.0
_LIMIT_SECONDS = 30.0
_CLOSE_SECONDS = 2.0


@asynccontextmanager
async def opened_admin(options: KafkaOptions) -> AsyncIterator[AIOKafkaAdminClient]:
    """
    Connect for the length of a block.

    Raises:
        BrokerUnavailable: nobody answers, or not in time.
    """
    with translated():
        arguments = client_arguments(options)
        arguments["request_timeout_ms"] = milliseconds(REQUEST_SECONDS)
        admin = AIOKafkaAdminClient(**arguments)
        try:
            async with asyncio.timeout(_LIMIT_SECONDS):
                await admin.start()
                yield admin
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await admin.close()
