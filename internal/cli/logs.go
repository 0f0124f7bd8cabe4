package cli

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"warmboot/client"
)

type logOptions struct {
	follow, timestamps bool
	tail               int // how many of the last lines; all if negative
}

func (a *app) logsCmd() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:                   "logs [FLAGS] CONTAINER",
		DisableFlagsInUseLine: true,
		Short:                 "Show what a container wrote",
		Args:                  cobra.ExactArgs(1),
		ValidArgsFunction:     a.completeContainers(nil),
		RunE: a.do(func(ctx context.Context, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return a.copyLogs(ctx, cl, args[0], o)
		}),
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on until the container's command ends")
	cmd.Flags().BoolVarP(&o.timestamps, "timestamps", "t", false, "show when each line was written")
	cmd.Flags().IntVarP(&o.tail, "tail", "n", -1, "begin with this `number` of the last lines; all if negative")
	return cmd
}

// copyLogs writes a container's output and error output to ours, or in JSON each line as an object on a line of its own.
func (a *app) copyLogs(ctx context.Context, cl *client.Client, ref string, o logOptions) error {
	stream, err := cl.Logs(ctx, ref, o.follow, o.tail)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // it was only read
	for {
		line, err := stream.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if a.format == "json" {
			if err := a.printJSONLine(line); err != nil {
				return err
			}
			continue
		}
		w := a.Out
		if line.Stream == "stderr" {
			w = a.Err
		}
		text := line.Text
		if o.timestamps {
			text = line.Time.UTC().Format(time.RFC3339Nano) + " " + text
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
}
