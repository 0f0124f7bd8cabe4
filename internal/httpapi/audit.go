package httpapi

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
)

func (s *server) auditRoute(a huma.API) {
	op(a, "list-audit", http.MethodGet, "/v1/audit", "Access", "Read the audit log", "Every change that somebody asked for, newest first. Ask again with `next_cursor` as `cursor` for the ones before.",
		func(ctx context.Context, in *struct {
			Cursor string `query:"cursor" maxLength:"32" doc:"next_cursor of the last answer."`
			Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
		}) (*answer[api.AuditPage], error) {
			var before int64
			if in.Cursor != "" {
				var err error
				if before, err = strconv.ParseInt(in.Cursor, 10, 64); err != nil || before <= 0 {
					return nil, warmboot.Errorf(warmboot.Invalid, "read audit log", "the cursor %q is none of ours; use next_cursor of an answer, or leave it out to begin with the newest", in.Cursor)
				}
			}
			all, err := s.access.Entries(ctx, before, in.Limit+1) // one more tells whether there are more
			if err != nil {
				return nil, err
			}
			page := api.AuditPage{Items: []api.AuditEntry{}}
			for i, e := range all {
				if i == in.Limit {
					page.NextCursor = strconv.FormatInt(all[i-1].ID, 10)
					break
				}
				page.Items = append(page.Items, auditOut(e))
			}
			return &answer[api.AuditPage]{page}, nil
		})
}

func auditOut(e *warmboot.AuditEntry) api.AuditEntry {
	return api.AuditEntry{
		ID: strconv.FormatInt(e.ID, 10), Time: e.At, Actor: e.Actor, TokenID: string(e.ActorID), Role: string(e.Role), Operation: e.Operation,
		EntityType: e.EntityType, EntityID: e.EntityID, EntityName: e.EntityName, Source: e.Source, RequestID: e.RequestID, Outcome: e.Outcome, FinishedAt: e.FinishedAt,
	}
}
