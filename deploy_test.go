package credstream_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// systemd itself reads the unit, and rates what the service may do (0 is nothing, 10 is all).
func TestSystemdUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: apt-get install systemd")
	}
	text, err := os.ReadFile(filepath.Join("deploy", "systemd", "credstream.service"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program, unit := filepath.Join(dir, "credstream"), filepath.Join(dir, "credstream.service")
	for path, content := range map[string]string{
		program: "#!/bin/sh\n",
		unit:    strings.ReplaceAll(string(text), "/usr/local/bin/credstream", program),
	} {
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"verify", "--man=no", unit}, {"security", "--offline=true", "--threshold=15", unit}} { // 1.5
		if out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
	}
}

var (
	alertName   = regexp.MustCompile(`(?m)^      - alert: (\w+)$`)
	alertExpr   = regexp.MustCompile(`(?m)^        expr: (.*)$`)
	runbookLink = regexp.MustCompile(`(?m)^          runbook: \S+/docs/runbook\.md#(\w+)$`)
	runbookPart = regexp.MustCompile(`(?m)^## (\w+)$`)
)

// Each alert has its section in the runbook, and no section lacks its alert.
func TestRunbook(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile(filepath.Join("deploy", "prometheus", "rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	book, err := os.ReadFile(filepath.Join("docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := func(re *regexp.Regexp, text []byte) (list []string) {
		for _, m := range re.FindAllSubmatch(text, -1) {
			list = append(list, strings.ToLower(string(m[1])))
		}
		return list
	}
	alerts := names(alertName, rules)
	if len(alerts) < 10 || len(alertExpr.FindAll(rules, -1)) != len(alerts) {
		t.Fatalf("found the alerts %q", alerts)
	}
	if got := names(runbookLink, rules); !slices.Equal(got, alerts) {
		t.Errorf("links to the runbook: %q, alerts: %q", got, alerts)
	}
	if got := names(runbookPart, book); !slices.Equal(got, alerts) {
		t.Errorf("sections of the runbook: %q, alerts: %q", got, alerts)
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not installed: apt-get install prometheus")
		return
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", filepath.Join("deploy", "prometheus", "rules.yml")).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// manifests are the plain manifests, and the values with which they are made from the chart.
var manifests = map[string][]string{
	"single.yaml": {"--set", "behindTLSProxy=true"},
	"cluster.yaml": {
		"--set", "behindTLSProxy=true", "--set", "cluster=true", "--set", "secrets.admin=credstream-admin",
		"--set", "nats.callout.issuer=REPLACE_WITH_THE_PUBLIC_KEY_OF_ISSUER_SEED", "--set", "nats.callout.xkey=REPLACE_WITH_THE_PUBLIC_KEY_OF_XKEY_SEED",
	},
}

// The chart passes Helm's linter, and the plain manifests are what it renders.
func TestChart(t *testing.T) {
	t.Parallel()
	chart := filepath.Join("deploy", "kubernetes", "credstream")
	for _, name := range []string{"node.conf", "accounts.conf"} {
		one, err1 := os.ReadFile(filepath.Join("deploy", "nats", name))
		two, err2 := os.ReadFile(filepath.Join(chart, "files", name))
		if err1 != nil || err2 != nil || !bytes.Equal(one, two) {
			t.Errorf("%s of the chart is not that of deploy/nats: %v %v", name, err1, err2)
		}
	}
	helm, err := exec.LookPath("helm")
	if err != nil {
		t.Skip("helm is not installed: go install helm.sh/helm/v3/cmd/helm@v3.22.0")
	}
	run := func(args ...string) *exec.Cmd { // a helm that go install built takes the cluster for one of v1.20
		return exec.CommandContext(t.Context(), helm, append(args, "--kube-version", "v1.30.0")...)
	}
	for name, values := range manifests {
		for _, args := range [][]string{{"lint", "--strict", chart}, {"template", "credstream", chart}} {
			out, err := run(append(args, values...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("helm %s: %v\n%s", args[0], err, out)
			}
			plain, err := os.ReadFile(filepath.Join("deploy", "kubernetes", name))
			if args[0] == "template" && (err != nil || !reflect.DeepEqual(objects(t, plain), objects(t, out))) {
				t.Errorf("%s is not what the chart renders: helm template credstream %s %s: %v", name, chart, strings.Join(values, " "), err)
			}
		}
	}
	all := []string{"--set", "secrets.admin=a", "--set", "secrets.kms=k", "--set", "secrets.tls=t", "--set", "publicURL=https://c.example.com", "--set", "storage.className=fast", "--set", "env.CREDSTREAM_LOG_LEVEL=debug"}
	for _, values := range [][]string{all, append(slices.Clone(manifests["cluster.yaml"]), all...)} {
		out, err := run(append([]string{"template", "x", chart}, values...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		checkManifests(t, string(out))
	}
	if out, err := run("template", "x", chart, "--set", "cluster=true").CombinedOutput(); err == nil || !bytes.Contains(out, []byte("nats.callout.issuer")) {
		t.Errorf("a cluster without keys: %v\n%s", err, out)
	}
}

// objects are the objects of manifests, by kind and name.
func objects(t *testing.T, text []byte) map[string]any {
	t.Helper()
	all := map[string]any{}
	for in := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var o map[string]any
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		about, _ := o["metadata"].(map[string]any)
		all[fmt.Sprint(o["kind"], " ", about["name"])] = o
	}
}

func TestManifests(t *testing.T) {
	t.Parallel()
	for name, kinds := range map[string]int{"single.yaml": 2, "cluster.yaml": 8} {
		text, err := os.ReadFile(filepath.Join("deploy", "kubernetes", name))
		if err != nil {
			t.Fatal(err)
		}
		if n := checkManifests(t, string(text)); n != kinds {
			t.Errorf("%s has %d objects", name, n)
		}
	}
}

// checkManifests parses manifests: each variable of credstream exists, each mount has its volume,
// each probe and service its port, and each selector its pods.
func checkManifests(t *testing.T, text string) (n int) {
	t.Helper()
	config, err := os.ReadFile(filepath.Join("docs", "config.md"))
	if err != nil {
		t.Fatal(err)
	}
	type container struct {
		Name          string
		Ports         []struct{ Name string }
		Env           []struct{ Name, Value string }
		VolumeMounts  []struct{ Name string } `yaml:"volumeMounts"`
		LivenessProbe struct {
			HTTPGet struct{ Port string } `yaml:"httpGet"`
		} `yaml:"livenessProbe"`
		ReadinessProbe struct {
			HTTPGet struct{ Port string } `yaml:"httpGet"`
		} `yaml:"readinessProbe"`
	}
	type object struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
		Spec       struct {
			Selector any
			Ports    []struct {
				TargetPort string `yaml:"targetPort"`
			}
			Template struct {
				Metadata struct{ Labels map[string]string }
				Spec     struct {
					Containers []container
					Volumes    []struct{ Name string }
				}
			}
			VolumeClaimTemplates []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
		}
	}
	var services []object
	ports := map[string][]string{} // of the pods, by component
	for in := yaml.NewDecoder(strings.NewReader(text)); ; {
		var o object
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n++
		if o.APIVersion == "" || o.Kind == "" || o.Metadata.Name == "" {
			t.Errorf("object %d: %+v", n, o)
		}
		if o.Kind == "Service" {
			services = append(services, o)
		}
		pod := o.Spec.Template.Spec
		for _, c := range pod.Containers {
			var names []string
			for _, v := range pod.Volumes {
				names = append(names, v.Name)
			}
			for _, v := range o.Spec.VolumeClaimTemplates {
				names = append(names, v.Metadata.Name)
			}
			for _, m := range c.VolumeMounts {
				if !slices.Contains(names, m.Name) {
					t.Errorf("%s mounts %s, which it does not have", o.Metadata.Name, m.Name)
				}
			}
			var open []string
			for _, p := range c.Ports {
				open = append(open, p.Name)
			}
			for _, probe := range []string{c.LivenessProbe.HTTPGet.Port, c.ReadinessProbe.HTTPGet.Port} {
				if !slices.Contains(open, probe) {
					t.Errorf("%s probes port %q", o.Metadata.Name, probe)
				}
			}
			ports[o.Spec.Template.Metadata.Labels["app.kubernetes.io/component"]] = open
			set := ""
			for _, e := range c.Env {
				if strings.HasPrefix(e.Name, "CREDSTREAM_") && !bytes.Contains(config, []byte("`"+e.Name+"`")) {
					t.Errorf("%s sets %s, which is no setting", o.Metadata.Name, e.Name)
				}
				for _, used := range variableUse.FindAllStringSubmatch(e.Value, -1) {
					if !strings.Contains(set, " "+used[1]+" ") {
						t.Errorf("%s uses %s before it is set", e.Name, used[1])
					}
				}
				set += " " + e.Name + " "
			}
		}
	}
	for _, s := range services {
		selector, _ := s.Spec.Selector.(map[string]any)
		component, _ := selector["app.kubernetes.io/component"].(string)
		for _, p := range s.Spec.Ports {
			if !slices.Contains(ports[component], p.TargetPort) {
				t.Errorf("service %s leads to port %q of %q", s.Metadata.Name, p.TargetPort, component)
			}
		}
	}
	return n
}

var variableUse = regexp.MustCompile(`\$\((\w+)\)`)
