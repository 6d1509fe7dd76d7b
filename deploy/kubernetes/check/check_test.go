// Package check_test renders the manifests and holds them against what an API server holds them against: the code is Kubernetes'
// own, so no cluster is needed. What only a cluster can tell, scheduling and running, is not tried here.
package check_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// Whether it is rendered from the base or from the overlay to copy, an API server takes all of it.
func TestAnAPIServerTakesIt(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"base", "example"} {
		objects := render(t, folder)
		for _, object := range objects {
			for _, fault := range faults(t, object) {
				t.Errorf("%s: %s", folder, fault)
			}
		}
		if len(objects) != 4 {
			t.Errorf("%s has %d objects", folder, len(objects))
		}
	}
}

// The check would notice: one mistake of each kind is made, and found.
func TestFaultsAreFound(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../base/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, mistake := range []struct{ right, wrong string }{
		{"replicas: 2", "replica: 2"},                                            // no such field
		{"replicas: 2", "replicas: two"},                                         // no such number
		{"path: /health, port: http", "path: /health, port: HTTP_PORT"},          // no such name of a port
		{"name: database, mountPath", "name: databse, mountPath"},                // no such volume
		{"whenUnsatisfiable: ScheduleAnyway", "whenUnsatisfiable: Sometimes"},    // no such word
		{"seccompProfile: {type: RuntimeDefault}", "seccompProfile: {typ: Run}"}, // deep down
		{"cpu: 500m, memory: 64Mi", "cpu: 500m, memory: 64MB"},                   // no such unit
		{"maxUnavailable: 0, maxSurge: 1", "maxUnavailable: 0, maxSurge: 0"},     // a roll-out that cannot move
	} {
		broken := strings.Replace(string(text), mistake.right, mistake.wrong, 1)
		if broken == string(text) {
			t.Errorf("the deployment has no %q", mistake.right)
			continue
		}
		object, err := decode([]byte(broken))
		if err == nil && len(faults(t, object)) == 0 {
			t.Errorf("%q is taken", mistake.wrong)
		}
	}
}

// Namespaces that are held to the strictest of Kubernetes' Pod Security Standards let the pods in.
func TestPodsAreRestricted(t *testing.T) {
	t.Parallel()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, template := range templates(t) {
		level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
		for _, result := range evaluator.EvaluatePod(level, &template.ObjectMeta, &template.Spec) {
			if !result.Allowed {
				t.Errorf("%s: %s: %s", name, result.ForbiddenReason, result.ForbiddenDetail)
			}
		}
		for _, container := range template.Spec.Containers {
			if readOnly := container.SecurityContext.ReadOnlyRootFilesystem; readOnly == nil || !*readOnly {
				t.Errorf("%s: the root file system can be written", name)
			}
			if container.Resources.Requests.Cpu().IsZero() || container.Resources.Limits.Memory().IsZero() {
				t.Errorf("%s: no CPU is asked for, or memory has no limit", name)
			}
		}
		if mount := template.Spec.AutomountServiceAccountToken; mount == nil || *mount {
			t.Errorf("%s: the token of the service account is mounted", name)
		}
	}
}

// What selects pods selects those of the service, and never the job's.
func TestSelectors(t *testing.T) {
	t.Parallel()
	base := render(t, "base")
	deployment, service, budget := one[*appsv1.Deployment](t, base), one[*corev1.Service](t, base), one[*policyv1.PodDisruptionBudget](t, base)
	selectors := map[string]*metav1.LabelSelector{
		"deployment":        deployment.Spec.Selector,
		"service":           {MatchLabels: service.Spec.Selector},
		"disruption budget": budget.Spec.Selector,
	}
	for _, constraint := range deployment.Spec.Template.Spec.TopologySpreadConstraints {
		selectors[constraint.TopologyKey] = constraint.LabelSelector
	}
	if len(selectors) != 5 {
		t.Errorf("%d selectors", len(selectors))
	}
	for name, wanted := range selectors {
		selector, err := metav1.LabelSelectorAsSelector(wanted)
		if err != nil {
			t.Fatal(err)
		}
		if !selector.Matches(labels.Set(deployment.Spec.Template.Labels)) {
			t.Errorf("%s does not select the service", name)
		}
		if selector.Matches(labels.Set(one[*batchv1.Job](t, base).Spec.Template.Labels)) {
			t.Errorf("%s selects the migration", name)
		}
	}
	if port := service.Spec.Ports[0].TargetPort.String(); port != deployment.Spec.Template.Spec.Containers[0].Ports[0].Name {
		t.Errorf("the service sends to %s", port)
	}
}

// A stop has the time that the service was promised, and a roll-out or a drained node always leaves an instance.
func TestStop(t *testing.T) {
	t.Parallel()
	base := render(t, "base")
	deployment := one[*appsv1.Deployment](t, base)
	pod := deployment.Spec.Template.Spec
	container := pod.Containers[0]
	shutdown, err := time.ParseDuration(variable(t, container, "SHUTDOWN_TIMEOUT").Value)
	if err != nil {
		t.Fatal(err)
	}
	pause := time.Duration(container.Lifecycle.PreStop.Sleep.Seconds) * time.Second
	if grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second; pause == 0 || grace <= pause+shutdown {
		t.Errorf("%s of grace for a pause of %s and a stop of at most %s", grace, pause, shutdown)
	}
	if *deployment.Spec.Replicas < 2 || deployment.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 {
		t.Error("a roll-out takes the only instance")
	}
	if most := one[*policyv1.PodDisruptionBudget](t, base).Spec.MaxUnavailable.IntValue(); most >= int(*deployment.Spec.Replicas) {
		t.Error("a drained node may take all instances")
	}
}

// No secret stands in the files: both pods get theirs from one that the operator makes, as a variable and as a file.
func TestSecrets(t *testing.T) {
	t.Parallel()
	for name, template := range templates(t) {
		container, volume := template.Spec.Containers[0], template.Spec.Volumes[0]
		from := variable(t, container, "DATABASE_URL").ValueFrom.SecretKeyRef
		if from == nil || from.Key != "url" || volume.Secret == nil || volume.Secret.SecretName != from.Name {
			t.Errorf("%s: DATABASE_URL and the password are not of one secret", name)
			continue
		}
		mount := container.VolumeMounts[0]
		if file := variable(t, container, "DATABASE_PASSWORD_FILE").Value; mount.Name != volume.Name || file != mount.MountPath+"/password" {
			t.Errorf("%s: the password is read from %s", name, file)
		}
		// Root owns the file: the pod reads it as its group.
		if mode := *volume.Secret.DefaultMode; mode != 0o440 || *template.Spec.SecurityContext.FSGroup != *template.Spec.SecurityContext.RunAsGroup {
			t.Errorf("%s: the password's mode is %o", name, mode)
		}
	}
}

// The files name what the service has: its settings, its commands, its paths, its port, the user of its image.
func TestNames(t *testing.T) {
	t.Parallel()
	config, contract, image := read(t, "cmd/coupond/config.go"), read(t, "openapi.yaml"), read(t, "Dockerfile")
	for name, template := range templates(t) {
		container := template.Spec.Containers[0]
		for _, v := range container.Env {
			if !strings.Contains(config, `env:"`+v.Name+`"`) {
				t.Errorf("%s: there is no setting %s", name, v.Name)
			}
		}
		if command := container.Args[0]; !strings.Contains(read(t, "cmd/coupond/"+command+".go"), `Use:   "`+command+`"`) {
			t.Errorf("%s: there is no command %s", name, command)
		}
		for _, probe := range []*corev1.Probe{container.LivenessProbe, container.ReadinessProbe} {
			if probe != nil && !strings.Contains(contract, "\n  "+probe.HTTPGet.Path+":\n") {
				t.Errorf("%s: there is no %s", name, probe.HTTPGet.Path)
			}
		}
		if !strings.Contains(image, "\nUSER 65532:65532\n") || *template.Spec.SecurityContext.RunAsUser != 65532 {
			t.Errorf("%s: the user is not the image's", name)
		}
	}
	container := one[*appsv1.Deployment](t, render(t, "base")).Spec.Template.Spec.Containers[0]
	if container.LivenessProbe == nil || container.ReadinessProbe == nil {
		t.Error("a probe is missing")
	}
	if address := variable(t, container, "LISTEN_ADDR").Value; address != ":8080" || container.Ports[0].ContainerPort != 8080 {
		t.Errorf("it listens on %s, and its port is %d", address, container.Ports[0].ContainerPort)
	}
}

// The base's image is one word, and the overlay replaces it everywhere.
func TestImages(t *testing.T) {
	t.Parallel()
	for name, template := range templates(t) {
		if image := template.Spec.Containers[0].Image; !regexp.MustCompile(`^[a-z-]+$`).MatchString(image) {
			t.Errorf("%s: the base's image is %s", name, image)
		}
	}
	example := render(t, "example")
	for _, template := range []corev1.PodTemplateSpec{one[*appsv1.Deployment](t, example).Spec.Template, one[*batchv1.Job](t, example).Spec.Template} {
		if image := template.Spec.Containers[0].Image; image != "your-registry/coupond:v1.0.0" {
			t.Errorf("the example's image is %s", image)
		}
	}
	for _, object := range example {
		if namespace := object.(metav1.Object).GetNamespace(); namespace != "coupons" {
			t.Errorf("%T is in namespace %q", object, namespace)
		}
	}
}

// templates are the pods of the base, by the name of what makes them.
func templates(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	base := render(t, "base")
	return map[string]corev1.PodTemplateSpec{
		"deployment": one[*appsv1.Deployment](t, base).Spec.Template,
		"job":        one[*batchv1.Job](t, base).Spec.Template,
	}
}

func variable(t *testing.T, container corev1.Container, name string) corev1.EnvVar {
	t.Helper()
	for _, v := range container.Env {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("%s has no %s", container.Name, name)
	return corev1.EnvVar{}
}

// read reads a file of the repository.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile("../../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
