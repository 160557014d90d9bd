"""Environment variables that every connector gets."""

#: Airbyte's platform sets them, too: no features of its cloud, and states per stream.
CONNECTOR_ENV = {"DEPLOYMENT_MODE": "OSS", "USE_STREAM_CAPABLE_STATE": "true"}
#: In a container, a JVM without memory must end, so that the exit code says so.
CONTAINER_ENV = {**CONNECTOR_ENV, "JAVA_OPTS": "-XX:+ExitOnOutOfMemoryError"}
