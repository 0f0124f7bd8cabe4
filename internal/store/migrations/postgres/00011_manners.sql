-- +goose Up
-- Lists are read newest first, a page at a time, and narrowed by one of these.
DROP INDEX containers_state;
DROP INDEX containers_host;
DROP INDEX containers_image;
CREATE INDEX containers_state ON containers (state, created_at DESC, id DESC);
CREATE INDEX containers_host ON containers (host_id, created_at DESC, id DESC);
CREATE INDEX containers_runtime_image ON containers (runtime_image_id, created_at DESC, id DESC);
CREATE INDEX containers_image ON containers (image, created_at DESC, id DESC);
CREATE INDEX containers_boot_method ON containers (boot_method, created_at DESC, id DESC);
-- The index of the names' uniqueness sorts by the database's own rules, which do not keep a prefix together.
CREATE INDEX containers_name_prefix ON containers (name COLLATE "C");

-- What requests with an Idempotency-Key have made. A row refers to nothing: it outlives that.
CREATE TABLE receipts (
    key_digest     TEXT PRIMARY KEY,
    request_digest TEXT NOT NULL,
    entity_id      UUID NOT NULL,
    secret         BYTEA,
    created_at     TIMESTAMPTZ NOT NULL
);
CREATE INDEX receipts_created_at ON receipts (created_at);

-- +goose Down
DROP TABLE receipts;
DROP INDEX containers_name_prefix;
DROP INDEX containers_boot_method;
DROP INDEX containers_image;
DROP INDEX containers_runtime_image;
DROP INDEX containers_host;
DROP INDEX containers_state;
CREATE INDEX containers_image ON containers (runtime_image_id);
CREATE INDEX containers_host ON containers (host_id);
CREATE INDEX containers_state ON containers (state);
