package controlplane

import "context"

// Readiness is whether one thing that every request needs answers; Err is nil if it does.
type Readiness struct {
	Name string
	Err  error
}

// Ready asks whether the store answers and a host is up.
func (s *Service) Ready(ctx context.Context) []Readiness {
	_, storeErr := s.store.Images(ctx)
	_, hostErr := s.someHost()
	return []Readiness{{"store", storeErr}, {"host", hostErr}}
}
