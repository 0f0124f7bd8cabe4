-- +goose Up
CREATE TABLE hosts (
    id           UUID PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    address      TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('up', 'down')),
    cordoned     BOOLEAN NOT NULL,
    beat         BIGINT NOT NULL,
    last_seen_at TIMESTAMPTZ,
    created_at   TIMESTAMPTZ NOT NULL,
    inventory    JSONB NOT NULL
);

-- The managers that live. A lease of one that is not here is free.
CREATE TABLE managers (
    id         UUID PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    beat       BIGINT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL
);

ALTER TABLE containers ADD COLUMN host_id UUID REFERENCES hosts (id);
ALTER TABLE containers ADD COLUMN lease_owner UUID;
ALTER TABLE containers ADD COLUMN lease_generation BIGINT NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN private BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE containers ADD COLUMN stopped_by_user BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE containers ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;
CREATE INDEX containers_host ON containers (host_id);
CREATE INDEX containers_newest ON containers (created_at DESC, id DESC);
CREATE INDEX containers_state ON containers (state);

ALTER TABLE runtime_snapshots ADD COLUMN host_id UUID REFERENCES hosts (id);
ALTER TABLE runtime_snapshots ADD COLUMN platform TEXT NOT NULL DEFAULT '';
ALTER TABLE runtime_snapshots ADD COLUMN lease_owner UUID;
ALTER TABLE runtime_snapshots ADD COLUMN lease_generation BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runtime_snapshots ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
-- One build at a time of what would replace each other.
CREATE UNIQUE INDEX runtime_snapshots_building ON runtime_snapshots (runtime_image_id, platform) WHERE state = 'creating';

-- A host port is a port of one host.
ALTER TABLE container_ports ADD COLUMN host_id UUID;
UPDATE container_ports SET host_id = '00000000-0000-0000-0000-000000000000';
ALTER TABLE container_ports ALTER COLUMN host_id SET NOT NULL;
ALTER TABLE container_ports DROP CONSTRAINT container_ports_pkey;
ALTER TABLE container_ports ADD PRIMARY KEY (host_id, host_port, protocol, host_ip);

-- What a host still has of these, when it comes back, is to be removed; what nobody ever deleted is not.
CREATE TABLE deleted_containers (
    id         UUID PRIMARY KEY,
    deleted_at TIMESTAMPTZ NOT NULL
);

-- +goose Down
DROP TABLE deleted_containers;
ALTER TABLE container_ports DROP CONSTRAINT container_ports_pkey;
ALTER TABLE container_ports DROP COLUMN host_id;
ALTER TABLE container_ports ADD PRIMARY KEY (host_port, protocol, host_ip);
DROP INDEX runtime_snapshots_building;
ALTER TABLE runtime_snapshots DROP COLUMN attempt, DROP COLUMN lease_generation, DROP COLUMN lease_owner, DROP COLUMN platform, DROP COLUMN host_id;
DROP INDEX containers_state;
DROP INDEX containers_newest;
ALTER TABLE containers DROP COLUMN restarts, DROP COLUMN stopped_by_user, DROP COLUMN private, DROP COLUMN lease_generation, DROP COLUMN lease_owner, DROP COLUMN host_id;
DROP TABLE managers;
DROP TABLE hosts;
