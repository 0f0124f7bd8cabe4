package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"warmboot/client"
)

// listing is what a command lists.
type listing[T any] struct {
	short   string         // what the command's help says
	name    func(T) string // what --quiet prints of each
	quiet   string         // what the help says of that
	get     func(context.Context, *client.Client) ([]T, error)
	columns []column[T]
}

// lsCmd is the command `ls` of a kind of things.
func lsCmd[T any](a *app, l listing[T], aliases ...string) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: append([]string{"list"}, aliases...),
		Short:   l.short,
		Args:    cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			all, err := l.get(ctx, cl)
			if err != nil {
				return err
			}
			if !quiet {
				return printList(a, all, l.columns...)
			}
			for _, item := range all {
				fmt.Fprintln(a.Out, l.name(item))
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, l.quiet)
	return cmd
}
