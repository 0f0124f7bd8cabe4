package controlplane

import (
	"context"

	"warmboot"
)

// Readiness is whether one thing that every request needs answers; Err is nil if it does.
type Readiness struct {
	Name string
	Err  error
}

// Counts counts what there is.
func (s *Service) Counts(ctx context.Context) (*warmboot.Counts, error) { return s.store.Counts(ctx) }

// Ready asks whether the store answers and a host is up.
func (s *Service) Ready(ctx context.Context) []Readiness {
	_, storeErr := s.store.Images(ctx, warmboot.Page{Limit: 1})
	return []Readiness{{"store", storeErr}, {"host", s.anyHost()}}
}
