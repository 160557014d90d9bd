"""Environment variables that every connector gets."""

#: The platform also sets these variables: no cloud features, and a state for each stream.
CONNECTOR_ENV = {"DEPLOYMENT_MODE": "OSS", "USE_STREAM_CAPABLE_STATE": "true"}
#: In a container, a JVM that runs out of memory must exit, so that its exit code shows this.
CONTAINER_ENV = {**CONNECTOR_ENV, "JAVA_OPTS": "-XX:+ExitOnOutOfMemoryError"}
