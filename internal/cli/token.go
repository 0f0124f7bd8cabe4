package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"warmboot/api"
	"warmboot/client"
)

func (a *app) tokenCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Tokens, with which others may use the server",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.tokenCreateCmd(), a.tokenLsCmd(), a.tokenRmCmd())
	return cmd
}

func (a *app) tokenCreateCmd() *cobra.Command {
	var role string
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token and print it, this once",
		Long: `Make a token and print it, this once: the server keeps only a digest of it.

viewer    may look at everything but tokens and the audit log
operator  may also change containers, snapshots and images, run commands in containers, and collect garbage
admin     may also give and take tokens, and read the audit log`,
		Example: `  warmboot token create prometheus --role viewer > /etc/prometheus/warmboot.token
  warmboot token create ci --role operator --expires 720h`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.do(func(ctx context.Context, args []string) error {
			if expires < 0 || expires > 0 && expires < time.Second {
				return invalid("--expires %s: a token is good for a second at least; leave --expires out for one that does not expire", expires)
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			made, err := cl.CreateToken(ctx, api.CreateToken{Name: args[0], Role: role, TTLSeconds: int64(expires / time.Second)})
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(made)
			}
			until := ""
			if made.Item.ExpiresAt != nil {
				until = ", good until " + made.Item.ExpiresAt.UTC().Format(time.RFC3339)
			}
			fmt.Fprintf(a.Err, "token %s, role %s%s; it is not shown again:\n", made.Item.Name, made.Item.Role, until)
			_, err = fmt.Fprintln(a.Out, made.Secret)
			return err
		}),
	}
	cmd.Flags().StringVar(&role, "role", "viewer", "`role`: viewer, operator or admin")
	cmd.Flags().DurationVar(&expires, "expires", 0, "`time` after which it is of no use any more, like 720h; 0: never")
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "operator", "admin"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (a *app) tokenLsCmd() *cobra.Command {
	return lsCmd(a, listing[api.Token]{
		short: "List tokens", quiet: "only names", name: func(t api.Token) string { return t.Name },
		get: func(ctx context.Context, cl *client.Client) ([]api.Token, error) { return cl.Tokens(ctx) },
		columns: []column[api.Token]{
			{"NAME", func(t api.Token) string { return t.Name }},
			{"ROLE", func(t api.Token) string { return t.Role }},
			{"CREATED", func(t api.Token) string { return ago(t.CreatedAt) }},
			{"BY", func(t api.Token) string { return t.CreatedBy }},
			{"EXPIRES", func(t api.Token) string {
				switch {
				case t.ExpiresAt == nil:
					return "never"
				case t.Expired:
					return "expired " + ago(*t.ExpiresAt)
				}
				return ago(*t.ExpiresAt)
			}},
			{"LAST USED", func(t api.Token) string {
				if t.LastUsedAt == nil {
					return "never"
				}
				return ago(*t.LastUsedAt)
			}},
		},
	})
}

func (a *app) tokenRmCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rm TOKEN...",
		Aliases:           []string{"revoke"},
		Short:             "Revoke tokens: they are refused from now on",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeTokens,
		RunE: a.do(func(ctx context.Context, refs []string) error {
			return each(a, refs, func(cl *client.Client, ref string) (string, error) { return ref, cl.RevokeToken(ctx, ref) })
		}),
	}
}

func (a *app) completeTokens(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.complete(func(ctx context.Context, cl *client.Client) []string {
		var names []string
		list, _ := cl.Tokens(ctx) // no list, no names
		for _, t := range list {
			names = append(names, t.Name)
		}
		return names
	})(cmd, args, typed)
}
