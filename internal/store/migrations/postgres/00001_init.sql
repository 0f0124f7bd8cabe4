-- +goose Up
-- A deleted image stays, unseen, for as long as a deleted snapshot's files may have to be found by its id.
CREATE TABLE images (
    id          UUID PRIMARY KEY,
    name        TEXT NOT NULL,
    kernel_path TEXT NOT NULL,
    initrd_path TEXT NOT NULL,
    rootfs_path TEXT NOT NULL,
    digest      TEXT NOT NULL,
    size_bytes  BIGINT NOT NULL,
    recipe      TEXT NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    deleted_at  TIMESTAMPTZ
);
CREATE UNIQUE INDEX images_name ON images (name) WHERE deleted_at IS NULL;

-- The founding document's table.
CREATE TABLE runtime_snapshots (
    id               UUID PRIMARY KEY,
    runtime_image_id UUID REFERENCES images (id),
    snapshot_path    TEXT NOT NULL,
    state            TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'unhealthy', 'deleted')),
    fc_version       TEXT NOT NULL,
    created_at       TIMESTAMPTZ NOT NULL,
    success_count    INT NOT NULL DEFAULT 0,
    failure_count    INT NOT NULL DEFAULT 0,
    failure_streak   INTEGER NOT NULL DEFAULT 0,
    last_used_at     TIMESTAMPTZ,
    metadata         JSONB NOT NULL DEFAULT '{}'
);
CREATE INDEX runtime_snapshots_image ON runtime_snapshots (runtime_image_id);

-- snapshot_id is history and refers to nothing: the snapshot may be gone.
CREATE TABLE containers (
    id               UUID PRIMARY KEY,
    name             TEXT NOT NULL UNIQUE,
    image            TEXT NOT NULL,
    runtime_image_id UUID NOT NULL REFERENCES images (id),
    spec             JSONB NOT NULL,
    state            TEXT NOT NULL CHECK (state IN ('creating', 'running', 'stopping', 'stopped', 'starting', 'failed', 'deleting')),
    boot_method      TEXT CHECK (boot_method IN ('warm', 'cold')),
    boot_reason      TEXT NOT NULL,
    vm_id            TEXT NOT NULL,
    snapshot_id      UUID,
    phases           JSONB NOT NULL,
    exit_code        INTEGER,
    error            TEXT NOT NULL,
    created_at       TIMESTAMPTZ NOT NULL,
    started_at       TIMESTAMPTZ,
    finished_at      TIMESTAMPTZ
);
CREATE INDEX containers_image ON containers (runtime_image_id);

-- Host ports that live containers hold. What a container asked for is in its spec; a row here is the claim to it.
CREATE TABLE container_ports (
    container_id UUID NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    host_ip      TEXT NOT NULL,
    host_port    INTEGER NOT NULL,
    protocol     TEXT NOT NULL,
    PRIMARY KEY (host_port, protocol, host_ip)
);
CREATE INDEX container_ports_container ON container_ports (container_id);

-- +goose Down
DROP TABLE container_ports;
DROP TABLE containers;
DROP TABLE runtime_snapshots;
DROP TABLE images;
