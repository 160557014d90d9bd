BEGIN TRANSACTION;
CREATE TABLE airbyte_catalogs (
	connection TEXT NOT NULL, 
	stream_namespace TEXT NOT NULL, 
	stream_name TEXT NOT NULL, 
	table_path TEXT NOT NULL, 
	json_schema JSON NOT NULL, 
	primary_key JSON NOT NULL, 
	cursor_field JSON NOT NULL, 
	supported_sync_modes JSON NOT NULL, 
	connector TEXT NOT NULL, 
	discovered_at DATETIME NOT NULL, 
	PRIMARY KEY (connection, stream_namespace, stream_name)
);
CREATE TABLE airbyte_connector_registry (
	name TEXT NOT NULL, 
	title TEXT NOT NULL, 
	docker_image TEXT NOT NULL, 
	version TEXT NOT NULL, 
	category TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	language TEXT NOT NULL, 
	support_level TEXT NOT NULL, 
	pypi_package TEXT, 
	docs_url TEXT NOT NULL, 
	definition_id TEXT NOT NULL, 
	listed_on TEXT NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE airbyte_state (
	connection TEXT NOT NULL, 
	stream_namespace TEXT NOT NULL, 
	stream_name TEXT NOT NULL, 
	state JSON, 
	state_type TEXT NOT NULL, 
	generation_id BIGINT NOT NULL, 
	seq BIGINT NOT NULL, 
	action TEXT NOT NULL, 
	run_id TEXT, 
	committed_at DATETIME NOT NULL, 
	PRIMARY KEY (connection, stream_namespace, stream_name)
);
CREATE TABLE airbyte_sync_stats (
	id INTEGER NOT NULL, 
	connection TEXT NOT NULL, 
	stream_namespace TEXT NOT NULL, 
	stream_name TEXT NOT NULL, 
	run_id TEXT, 
	status TEXT NOT NULL, 
	records BIGINT, 
	bytes BIGINT, 
	seconds FLOAT, 
	checkpoints INTEGER, 
	error TEXT, 
	connector TEXT, 
	finished_at DATETIME NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "airbyte_sync_stats" VALUES(1,'shop','','users','run-1','succeeded',3,NULL,NULL,NULL,NULL,'x:1','2026-11-30 08:41:32.214465');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE INDEX airbyte_sync_stats_by_run ON airbyte_sync_stats (run_id);
CREATE INDEX airbyte_sync_stats_by_connection ON airbyte_sync_stats (connection, finished_at);
COMMIT;
