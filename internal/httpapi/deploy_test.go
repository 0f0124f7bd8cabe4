package httpapi_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"warmboot/api"
)

// TestDeployedQueriesAskForWhatThereIs reads the alert rules and the dashboard and looks for each of their metrics in a scrape.
func TestDeployedQueriesAskForWhatThereIs(t *testing.T) {
	r := newMeasuredRig(t, nil)
	r.create(api.CreateContainer{}) // a fallback
	id, err := r.client.CreateSnapshot(context.Background(), r.image.ID)
	r.must(err)
	r.waitReady(id)
	r.create(api.CreateContainer{})
	there := map[string]bool{"up": true}
	for sample := range r.scrape() {
		name, _, _ := strings.Cut(sample, "{")
		there[name] = true
	}

	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile("../../deploy/prometheus/warmboot.rules.yml")
	r.must(err)
	r.must(yaml.Unmarshal(text, &rules))
	queries := map[string]string{}
	for _, g := range rules.Groups {
		for _, rule := range g.Rules {
			if rule.Alert == "" || rule.Labels["severity"] == "" || rule.Annotations["summary"] == "" {
				t.Errorf("a rule lacks its name, severity or summary: %+v", rule)
			}
			queries["alert "+rule.Alert] = rule.Expr
		}
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err = os.ReadFile("../../deploy/grafana/warmboot.json")
	r.must(err)
	r.must(json.Unmarshal(text, &dashboard))
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			queries["panel "+p.Title+": "+target.Expr] = target.Expr
		}
	}
	if len(queries) < 20 {
		t.Fatalf("only %d queries were found", len(queries))
	}
	metric := regexp.MustCompile(`\b(?:warmboot|process|go)_[a-z_]+`)
	quoted := regexp.MustCompile(`"[^"]*"`)
	for where, query := range queries {
		for _, name := range metric.FindAllString(quoted.ReplaceAllString(query, `""`), -1) {
			if !there[name] {
				t.Errorf("%s asks for %s, which no server has", where, name)
			}
		}
	}
}

// TestPrometheusTakesTheAlertRules has Prometheus' own program read them.
func TestPrometheusTakesTheAlertRules(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIPPED: promtool is not installed; Debian's package prometheus has it")
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", "../../deploy/prometheus/warmboot.rules.yml").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
