package cli

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"

	"warmboot/api"
)

// auditPage is how many entries are asked for at once.
const auditPage = 500

func (a *app) auditCmd() *cobra.Command {
	var number int
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who has changed what, newest first",
		Args:  cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			var all []api.AuditEntry
			for cursor := ""; number < 0 || len(all) < number; {
				limit := auditPage
				if number >= 0 {
					limit = min(limit, number-len(all))
				}
				page, err := cl.Audit(ctx, cursor, limit)
				if err != nil {
					return err
				}
				all = append(all, page.Items...)
				if cursor = page.NextCursor; cursor == "" {
					break
				}
			}
			return printList(a, all,
				column[api.AuditEntry]{"TIME", func(e api.AuditEntry) string { return e.Time.UTC().Format(time.RFC3339) }},
				column[api.AuditEntry]{"WHO", func(e api.AuditEntry) string { return e.Actor }},
				column[api.AuditEntry]{"FROM", func(e api.AuditEntry) string { return cmp.Or(e.Source, "-") }},
				column[api.AuditEntry]{"OPERATION", func(e api.AuditEntry) string { return e.Operation }},
				column[api.AuditEntry]{"WHAT", auditedEntity},
				column[api.AuditEntry]{"OUTCOME", func(e api.AuditEntry) string { return cmp.Or(e.Outcome, "not known") }},
			)
		}),
	}
	cmd.Flags().IntVarP(&number, "number", "n", 50, "`number` of entries; all if negative")
	return cmd
}

// auditedEntity is what a change was about, as people would call it.
func auditedEntity(e api.AuditEntry) string {
	switch {
	case e.EntityID == "" && e.EntityName == "":
		return e.EntityType
	case e.EntityID == "":
		return e.EntityType + " " + oneLine(e.EntityName, 40)
	case e.EntityName == "":
		return e.EntityType + " " + shortID(e.EntityID)
	}
	return e.EntityType + " " + oneLine(e.EntityName, 40) + " (" + shortID(e.EntityID) + ")"
}
