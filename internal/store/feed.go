package store

import (
	"context"
	"time"

	"warmboot"
)

// feedChannel is the name under which managers speak to each other, https://www.postgresql.org/docs/current/sql-notify.html.
const feedChannel = "warmboot"

// feedRetry is how long Follow waits before it connects again.
const feedRetry = time.Second

// Publish implements warmboot.Feed.
func (s *Store) Publish(ctx context.Context, messages []string) error {
	if s.dialect.listen == nil || len(messages) == 0 {
		return nil
	}
	const op = "tell other managers"
	for _, m := range messages {
		if len(m) > warmboot.FeedLimit {
			return warmboot.Errorf(warmboot.Internal, op, "a message of %d bytes is too long", len(m))
		}
	}
	return s.one(ctx, op, func(ctx context.Context, db executor) error {
		_, err := db.ExecContext(ctx, `SELECT pg_notify($1, message) FROM unnest($2::text[]) WITH ORDINALITY AS m (message, n) ORDER BY n`, feedChannel, messages)
		return err
	})
}

// Follow implements warmboot.Feed.
func (s *Store) Follow(ctx context.Context, connected func(), message func(string)) error {
	if s.dialect.listen == nil {
		connected()
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		err := s.dialect.listen(ctx, s.url, connected, message)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.log.Warn("The connection that tells what other managers do was lost", "err", err)
		select {
		case <-time.After(feedRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
