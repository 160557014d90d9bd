CREATE SCHEMA c;
CREATE TABLE c._atlas_envelopes (
    seq bigint NOT NULL,
    envelope text NOT NULL
);
CREATE TABLE c._atlas_held_items (
    id bigint,
    v text,
    _airbyte_raw_id text,
    _airbyte_extracted_at timestamp with time zone,
    _airbyte_meta text,
    _airbyte_generation_id bigint,
    _airbyte_extra text,
    _atlas_arrival bigint
);
CREATE TABLE c._atlas_owner (
    deployment text NOT NULL,
    is_only boolean DEFAULT true NOT NULL,
    CONSTRAINT _atlas_owner_is_only_check CHECK (is_only)
);
CREATE TABLE c._atlas_state (
    path text NOT NULL,
    table_name text NOT NULL,
    relation regclass,
    seq bigint DEFAULT 0 NOT NULL,
    row_count bigint DEFAULT 0 NOT NULL,
    fields bytea
);
CREATE TABLE c.orders (
    id bigint,
    v text,
    _airbyte_raw_id text,
    _airbyte_extracted_at timestamp with time zone,
    _airbyte_meta jsonb,
    _airbyte_generation_id bigint,
    _airbyte_extra jsonb
);
CREATE TABLE c.users (
    id bigint,
    v text,
    _airbyte_raw_id text,
    _airbyte_extracted_at timestamp with time zone,
    _airbyte_meta jsonb,
    _airbyte_generation_id bigint,
    _airbyte_extra jsonb
);
INSERT INTO c._atlas_envelopes VALUES (1964046064, '{"seq":1964046064,"sync_id":1796028107451,"connection":"c","streams":[{"stream":{"name":"users","namespace":null},"table":["c","users"],"generation_id":0,"replaces":false,"files":[{"path":"_atlas_stage_1","size":0,"rows":2,"stats":""}],"primary_key":[["id"]],"held":false,"continues":false,"full_refresh":false,"begun_by":"run 0","rows_of":null,"cursor_field":["id"],"wiped_at":null}],"state":[{"type":"STREAM","stream":{"stream_descriptor":{"name":"users"},"stream_state":{"id": 2}}}],"prepared_at":1796028107.6025965,"run_id":"run","action":"sync","covers":[],"wipes_until":null,"version":2}');
INSERT INTO c._atlas_envelopes VALUES (5858184381, '{"seq":5858184381,"sync_id":1796028107451,"connection":"c","streams":[{"stream":{"name":"orders","namespace":null},"table":["c","orders"],"generation_id":0,"replaces":false,"files":[{"path":"_atlas_stage_2","size":0,"rows":3,"stats":""}],"primary_key":[],"held":false,"continues":false,"full_refresh":false,"begun_by":"run 0","rows_of":null,"cursor_field":["id"],"wiped_at":null}],"state":[{"type":"STREAM","stream":{"stream_descriptor":{"name":"orders"},"stream_state":{"id": 3}}}],"prepared_at":1796028107.7296753,"run_id":"run","action":"sync","covers":[],"wipes_until":null,"version":2}');
INSERT INTO c._atlas_envelopes VALUES (1037122560, '{"seq":1037122560,"sync_id":1796028107835,"connection":"c","streams":[{"stream":{"name":"items","namespace":null},"table":["c","items"],"generation_id":1,"replaces":false,"files":[{"path":"_atlas_stage_3","size":0,"rows":2,"stats":""}],"primary_key":[],"held":true,"continues":false,"full_refresh":true,"begun_by":"run 1","rows_of":null,"cursor_field":null,"wiped_at":null}],"state":[{"type":"STREAM","stream":{"stream_descriptor":{"name":"items"},"stream_state":{"page": 2}}}],"prepared_at":1796028107.9671996,"run_id":"run","action":"sync","covers":[],"wipes_until":null,"version":2}');
INSERT INTO c._atlas_held_items VALUES (1, NULL, '64fb2a07-8049-4c89-bd26-aa8beaba4164', '2023-11-14 22:13:20.001+00', '{"sync_id":1796028107835,"changes":[]}', 1, NULL, 0);
INSERT INTO c._atlas_held_items VALUES (2, NULL, 'e543defb-7b9d-4247-b92f-745603ca5658', '2023-11-14 22:13:20.002+00', '{"sync_id":1796028107835,"changes":[]}', 1, NULL, 1);
INSERT INTO c._atlas_state VALUES ('c.users', 'users', 'c.users', 1964046064, 2, '\xffffffffb80100001000000000000a000e000600050008000a000000000104001000000000000a000c000000040008000a00000040000000040000000100000004000000c8feffff1c000000040000000c0000007b226964223a66616c73657d000000000a00000061746c61732e6b657074000002000000a80000000400000072ffffff00000105140000007c000000080000001000000000000000010000007600000002000000340000000400000034ffffff140000000400000006000000737472696e6700000c000000616972627974652e747970650000000060ffffff100000000400000001000000760000000d000000616972627974652e6669656c6400000004000600040000000000120018000800060007000c00000010001400120000000000010214000000880000000800000010000000000000000200000069640000020000003c00000004000000d4ffffff140000000400000007000000696e7465676572000c000000616972627974652e747970650000000008000c000400080008000000100000000400000002000000696400000d000000616972627974652e6669656c6400000008000c0008000700080000000000000140000000');
INSERT INTO c._atlas_state VALUES ('c.orders', 'orders', 'c.orders', 5858184381, 3, '\xffffffff780100001000000000000a000c000600050008000a000000000104000c0000000800080000000400080000000400000002000000a80000000400000072ffffff00000105140000007c000000080000001000000000000000010000007600000002000000340000000400000034ffffff140000000400000006000000737472696e6700000c000000616972627974652e747970650000000060ffffff100000000400000001000000760000000d000000616972627974652e6669656c6400000004000600040000000000120018000800060007000c00000010001400120000000000010214000000880000000800000010000000000000000200000069640000020000003c00000004000000d4ffffff140000000400000007000000696e7465676572000c000000616972627974652e747970650000000008000c000400080008000000100000000400000002000000696400000d000000616972627974652e6669656c6400000008000c0008000700080000000000000140000000');
INSERT INTO c._atlas_state VALUES ('c.items', 'items', NULL, 0, 0, NULL);
INSERT INTO c._atlas_state VALUES ('c.items (held)', '_atlas_held_items', 'c._atlas_held_items', 1037122560, 2, '\xffffffff780100001000000000000a000c000600050008000a000000000104000c0000000800080000000400080000000400000002000000a80000000400000072ffffff00000105140000007c000000080000001000000000000000010000007600000002000000340000000400000034ffffff140000000400000006000000737472696e6700000c000000616972627974652e747970650000000060ffffff100000000400000001000000760000000d000000616972627974652e6669656c6400000004000600040000000000120018000800060007000c00000010001400120000000000010214000000880000000800000010000000000000000200000069640000020000003c00000004000000d4ffffff140000000400000007000000696e7465676572000c000000616972627974652e747970650000000008000c000400080008000000100000000400000002000000696400000d000000616972627974652e6669656c6400000008000c0008000700080000000000000140000000');
INSERT INTO c.orders VALUES (1, NULL, 'bdcc8dc8-00d1-4f4b-b58a-87bcd1d9db47', '2023-11-14 22:13:20.001+00', '{"changes": [], "sync_id": 1796028107451}', 0, NULL);
INSERT INTO c.orders VALUES (2, NULL, '44673e87-39ff-421f-a6e4-3f412fca060b', '2023-11-14 22:13:20.002+00', '{"changes": [], "sync_id": 1796028107451}', 0, NULL);
INSERT INTO c.orders VALUES (3, NULL, '8eb48278-82f2-4c42-b4f2-210fae491c35', '2023-11-14 22:13:20.003+00', '{"changes": [], "sync_id": 1796028107451}', 0, NULL);
INSERT INTO c.users VALUES (1, NULL, 'e47c7364-2c8e-4744-8ca1-2d7cb785afea', '2023-11-14 22:13:20.001+00', '{"changes": [], "sync_id": 1796028107451}', 0, NULL);
INSERT INTO c.users VALUES (2, NULL, 'ecdc3736-b239-4582-b5bc-cf6525ad4d49', '2023-11-14 22:13:20.002+00', '{"changes": [], "sync_id": 1796028107451}', 0, NULL);
ALTER TABLE ONLY c._atlas_envelopes
    ADD CONSTRAINT _atlas_envelopes_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY c._atlas_owner
    ADD CONSTRAINT _atlas_owner_pkey PRIMARY KEY (is_only);
ALTER TABLE ONLY c._atlas_state
    ADD CONSTRAINT _atlas_state_pkey PRIMARY KEY (path);
ALTER TABLE ONLY c._atlas_state
    ADD CONSTRAINT _atlas_state_table_name_key UNIQUE (table_name);
CREATE INDEX _atlas_key_7661134f11608f64 ON c.users USING btree (id);
