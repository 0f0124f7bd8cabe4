package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"warmboot/api"
)

func (a *app) eventsCmd() *cobra.Command {
	var since string
	var types []string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what changes, as it changes, until interrupted",
		Args:  cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			stream, err := cl.Events(ctx, since, types...)
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }() // it was only read
			for {
				ev, err := stream.Next()
				if err != nil {
					return err
				}
				if err := a.printEvent(ev); err != nil {
					return err
				}
			}
		}),
	}
	cmd.Flags().StringVar(&since, "since-id", "", "go on after the event with this `id`, which -o json shows")
	cmd.Flags().StringSliceVar(&types, "type", nil, "only events of this `type`: container, snapshot or host (repeatable)")
	return cmd
}

func (a *app) printEvent(ev api.Event) error {
	if a.format == "json" {
		return a.printJSONLine(ev)
	}
	text := ev.Time.UTC().Format(time.RFC3339) + " " + ev.Type
	if ev.Type == "reset" {
		_, err := fmt.Fprintln(a.Out, text+": events are missing here; look at everything anew")
		return err
	}
	text += " " + shortID(ev.EntityID)
	if ev.Name != "" {
		text += " " + ev.Name
	}
	text += " " + ev.State
	if ev.BootMethod != "" {
		text += " (" + ev.BootMethod + " boot)"
	}
	_, err := fmt.Fprintln(a.Out, text)
	return err
}
