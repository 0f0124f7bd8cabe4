-- +goose Up
CREATE TABLE authority (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    certificate TEXT NOT NULL,
    private_key TEXT NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL
);

CREATE TABLE join_tokens (
    id         UUID PRIMARY KEY,
    digest     TEXT NOT NULL UNIQUE,
    host_id    UUID REFERENCES hosts (id) ON DELETE CASCADE,
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);

-- +goose Down
DROP TABLE join_tokens;
DROP TABLE authority;
