-- +goose Up
CREATE TABLE hosts (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    address      TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('up', 'down')),
    cordoned     INTEGER NOT NULL,
    beat         INTEGER NOT NULL,
    last_seen_at TEXT,
    created_at   TEXT NOT NULL,
    inventory    TEXT NOT NULL
) STRICT;

-- The managers that live. A lease of one that is not here is free.
CREATE TABLE managers (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    beat       INTEGER NOT NULL,
    started_at TEXT NOT NULL
) STRICT;

ALTER TABLE containers ADD COLUMN host_id TEXT REFERENCES hosts (id);
ALTER TABLE containers ADD COLUMN lease_owner TEXT;
ALTER TABLE containers ADD COLUMN lease_generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN private INTEGER NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN stopped_by_user INTEGER NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;
CREATE INDEX containers_host ON containers (host_id);
CREATE INDEX containers_newest ON containers (created_at DESC, id DESC);
CREATE INDEX containers_state ON containers (state);

ALTER TABLE runtime_snapshots ADD COLUMN host_id TEXT REFERENCES hosts (id);
ALTER TABLE runtime_snapshots ADD COLUMN platform TEXT NOT NULL DEFAULT '';
ALTER TABLE runtime_snapshots ADD COLUMN lease_owner TEXT;
ALTER TABLE runtime_snapshots ADD COLUMN lease_generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runtime_snapshots ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
-- One build at a time of what would replace each other.
CREATE UNIQUE INDEX runtime_snapshots_building ON runtime_snapshots (runtime_image_id, platform) WHERE state = 'creating';

-- A host port is a port of one host. SQLite cannot change a primary key, so the table is made anew.
CREATE TABLE ports_of_hosts (
    container_id TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    host_id      TEXT NOT NULL,
    host_ip      TEXT NOT NULL,
    host_port    INTEGER NOT NULL,
    protocol     TEXT NOT NULL,
    PRIMARY KEY (host_id, host_port, protocol, host_ip)
) STRICT;
INSERT INTO ports_of_hosts SELECT container_id, '00000000-0000-0000-0000-000000000000', host_ip, host_port, protocol FROM container_ports;
DROP TABLE container_ports;
ALTER TABLE ports_of_hosts RENAME TO container_ports;
CREATE INDEX container_ports_container ON container_ports (container_id);

-- What a host still has of these, when it comes back, is to be removed; what nobody ever deleted is not.
CREATE TABLE deleted_containers (
    id         TEXT PRIMARY KEY,
    deleted_at TEXT NOT NULL
) STRICT;

-- +goose Down
DROP TABLE deleted_containers;
CREATE TABLE ports (
    container_id TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    host_ip      TEXT NOT NULL,
    host_port    INTEGER NOT NULL,
    protocol     TEXT NOT NULL,
    PRIMARY KEY (host_port, protocol, host_ip)
) STRICT;
INSERT INTO ports SELECT container_id, host_ip, host_port, protocol FROM container_ports;
DROP TABLE container_ports;
ALTER TABLE ports RENAME TO container_ports;
CREATE INDEX container_ports_container ON container_ports (container_id);
DROP INDEX runtime_snapshots_building;
ALTER TABLE runtime_snapshots DROP COLUMN attempt;
ALTER TABLE runtime_snapshots DROP COLUMN lease_generation;
ALTER TABLE runtime_snapshots DROP COLUMN lease_owner;
ALTER TABLE runtime_snapshots DROP COLUMN platform;
ALTER TABLE runtime_snapshots DROP COLUMN host_id;
DROP INDEX containers_state;
DROP INDEX containers_newest;
DROP INDEX containers_host;
ALTER TABLE containers DROP COLUMN restarts;
ALTER TABLE containers DROP COLUMN stopped_by_user;
ALTER TABLE containers DROP COLUMN private;
ALTER TABLE containers DROP COLUMN lease_generation;
ALTER TABLE containers DROP COLUMN lease_owner;
ALTER TABLE containers DROP COLUMN host_id;
DROP TABLE managers;
DROP TABLE hosts;
