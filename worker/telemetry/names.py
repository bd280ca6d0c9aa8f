"""
The names of OpenTelemetry's semantic conventions that spans carry, in one place.

Messaging is still in development and GenAI has moved to a repository of its own, so the
package's constants for them are unstable or deprecated: these are ours, of conventions 1.37.
"""

MESSAGING_SYSTEM = "messaging.system"
MESSAGING_DESTINATION = "messaging.destination.name"
MESSAGING_PARTITION = "messaging.destination.partition.id"
MESSAGING_OFFSET = "messaging.kafka.offset"
MESSAGING_GROUP = "messaging.consumer.group.name"
MESSAGING_OPERATION = "messaging.operation.name"
MESSAGING_OPERATION_TYPE = "messaging.operation.type"
MESSAGING_BATCH_COUNT = "messaging.batch.message_count"

GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_MODEL = "gen_ai.request.model"
GEN_AI_DIMENSIONS = "gen_ai.embeddings.dimension.count"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"

DB_SYSTEM = "db.system.name"
DB_BATCH_SIZE = "db.operation.batch.size"

SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE = "service.instance.id"

ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
