// Package helm renders the chart with Helm's own engine. It is a module of its own: nothing of Helm gets into edged.
package helm

import (
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/yaml"
)

// render returns the documents that the chart makes of values (YAML), by file.
func render(t *testing.T, values string) (map[string]map[string]any, error) {
	t.Helper()
	chart, err := loader.Load("edged")
	if err != nil {
		t.Fatal(err)
	}
	given, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(chart, given, chartutil.ReleaseOptions{Name: "edge", Namespace: "voice", IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all) // Strict: a value that is not there is an error
	if err != nil {
		return nil, err
	}
	docs := map[string]map[string]any{}
	for name, text := range files {
		var doc map[string]any
		if strings.HasSuffix(name, ".yaml") && strings.TrimSpace(text) != "" {
			if err := yaml.UnmarshalStrict([]byte(text), &doc); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, text)
			}
			docs[strings.TrimPrefix(name, "edged/templates/")] = doc
		}
	}
	return docs, nil
}

// at walks down a document: names of keys, numbers of items.
func at(t *testing.T, doc any, path ...any) any {
	t.Helper()
	for _, p := range path {
		switch p := p.(type) {
		case string:
			doc = doc.(map[string]any)[p]
		case int:
			doc = doc.([]any)[p]
		}
		if doc == nil {
			t.Fatalf("nothing at %v of %v", p, path)
		}
	}
	return doc
}

func TestDaemonSet(t *testing.T) {
	docs, err := render(t, "")
	if err != nil {
		t.Fatal(err)
	}
	w := docs["workload.yaml"]
	pod := []any{"spec", "template", "spec"}
	for _, c := range []struct {
		want any
		path []any
	}{
		{"DaemonSet", []any{"kind"}},
		{true, append(pod, "hostNetwork")},
		{"true", append(pod, "nodeSelector", "edged")},
		{"edged:latest", append(pod, "containers", 0, "image")},
		{"55s", append(pod, "containers", 0, "args", 2)},
		{float64(0), append(pod, "containers", 0, "securityContext", "runAsUser")},
		{"NET_BIND_SERVICE", append(pod, "containers", 0, "securityContext", "capabilities", "add", 0)},
	} {
		if got := at(t, w, c.path...); got != c.want {
			t.Errorf("%v: %v, want %v", c.path, got, c.want)
		}
	}
	if docs["podmonitor.yaml"] != nil {
		t.Error("a PodMonitor that nobody asked for")
	}
	var config map[string]any
	if err := yaml.Unmarshal([]byte(at(t, docs["configmap.yaml"], "data", "edged.yaml").(string)), &config); err != nil {
		t.Fatal(err)
	}
	at(t, config, "networks", "inside", "subnets", 0)
}

// TestChecksum: a changed configuration makes other pods, an equal one does not.
func TestChecksum(t *testing.T) {
	sum := func(values string) any {
		docs, err := render(t, values)
		if err != nil {
			t.Fatal(err)
		}
		return at(t, docs["workload.yaml"], "spec", "template", "metadata", "annotations", "checksum/config")
	}
	if a, b := sum(""), sum("config: {log: {level: debug}}"); a == b || a != sum("replicas: 3") {
		t.Error("the checksum does not follow the configuration")
	}
}

func TestDeployment(t *testing.T) {
	docs, err := render(t, `
kind: Deployment
replicas: 2
capabilities: []
tlsSecret: edge
podLabels: {team: voice}
imagePullSecrets: [{name: pull}]
tolerations: [{key: edge, operator: Exists}]
env: [{name: INSIDE_IP, value: 10.0.0.1}]
podMonitor: {enabled: true, labels: {release: prometheus}}
`)
	if err != nil {
		t.Fatal(err)
	}
	w := docs["workload.yaml"]
	if n := at(t, w, "spec", "replicas"); n != float64(2) {
		t.Errorf("%v replicas", n)
	}
	at(t, w, "spec", "template", "spec", "affinity", "podAntiAffinity")
	if u := at(t, w, "spec", "template", "spec", "containers", 0, "securityContext", "runAsUser"); u != float64(65532) {
		t.Errorf("without capabilities it runs as %v", u)
	}
	at(t, w, "spec", "template", "spec", "volumes", 2, "secret", "secretName")
	if team := at(t, w, "spec", "template", "metadata", "labels", "team"); team != "voice" {
		t.Errorf("label %v", team)
	}
	at(t, docs["podmonitor.yaml"], "spec", "podMetricsEndpoints", 0, "authorization", "credentials", "key")
}

func TestWrongKind(t *testing.T) {
	if _, err := render(t, "kind: StatefulSet"); err == nil || !strings.Contains(err.Error(), "neither DaemonSet nor Deployment") {
		t.Errorf("a StatefulSet: %v", err)
	}
}
