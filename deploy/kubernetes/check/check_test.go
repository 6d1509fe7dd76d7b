// Package check_test renders the manifests and validates them with the code of the Kubernetes API
// server, without a cluster. Scheduling and running the pods is not tested.
package check_test

import (
	"os"
	"os/exec"
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

// The API server accepts all objects of the base and of the example overlay.
func TestManifests_areValid(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"base", "example"} {
		objects := render(t, folder)
		for _, object := range objects {
			for _, err := range validate(t, object) {
				t.Errorf("%s: %v", folder, err)
			}
		}
		if len(objects) != 4 {
			t.Errorf("%s: %d objects, want 4", folder, len(objects))
		}
	}
}

// The validation finds a mistake of each kind.
func TestValidate_findsMistakes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../base/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, mistake := range []struct{ right, wrong string }{
		{"replicas: 2", "replica: 2"},                                            // unknown field
		{"replicas: 2", "replicas: two"},                                         // not a number
		{"path: /health, port: http", "path: /health, port: HTTP_PORT"},          // unknown port name
		{"name: database, mountPath", "name: databse, mountPath"},                // unknown volume
		{"whenUnsatisfiable: ScheduleAnyway", "whenUnsatisfiable: Sometimes"},    // unknown value
		{"seccompProfile: {type: RuntimeDefault}", "seccompProfile: {typ: Run}"}, // unknown nested field
		{"cpu: 500m, memory: 64Mi", "cpu: 500m, memory: 64MB"},                   // unknown unit
		{"maxUnavailable: 0, maxSurge: 1", "maxUnavailable: 0, maxSurge: 0"},     // a rollout that cannot proceed
	} {
		broken := strings.Replace(string(text), mistake.right, mistake.wrong, 1)
		if broken == string(text) {
			t.Errorf("deployment.yaml does not contain %q", mistake.right)
			continue
		}
		object, err := decode([]byte(broken))
		if err == nil && len(validate(t, object)) == 0 {
			t.Errorf("no error for %q", mistake.wrong)
		}
	}
}

// The pods conform to the Pod Security Standard restricted, the strictest one.
func TestPods_areRestricted(t *testing.T) {
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
				t.Errorf("%s: the root file system is not read-only", name)
			}
			if container.Resources.Requests.Cpu().IsZero() || container.Resources.Limits.Memory().IsZero() {
				t.Errorf("%s: no CPU request, or no memory limit", name)
			}
		}
		if mount := template.Spec.AutomountServiceAccountToken; mount == nil || *mount {
			t.Errorf("%s: the service account token is mounted", name)
		}
	}
}

// All selectors match the pods of the service and not those of the job.
func TestSelectors_matchTheServiceOnly(t *testing.T) {
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
		t.Errorf("%d selectors, want 5", len(selectors))
	}
	for name, wanted := range selectors {
		selector, err := metav1.LabelSelectorAsSelector(wanted)
		if err != nil {
			t.Fatal(err)
		}
		if !selector.Matches(labels.Set(deployment.Spec.Template.Labels)) {
			t.Errorf("selector of %s does not match the service", name)
		}
		if selector.Matches(labels.Set(one[*batchv1.Job](t, base).Spec.Template.Labels)) {
			t.Errorf("selector of %s matches the migration", name)
		}
	}
	if port := service.Spec.Ports[0].TargetPort.String(); port != deployment.Spec.Template.Spec.Containers[0].Ports[0].Name {
		t.Errorf("the target port of the Service is %s, which is not the container's port", port)
	}
}

// A stopping pod has enough time to drain, and a rollout or a drained node always leaves an
// instance.
func TestShutdown(t *testing.T) {
	t.Parallel()
	base := render(t, "base")
	deployment := one[*appsv1.Deployment](t, base)
	pod := deployment.Spec.Template.Spec
	container := pod.Containers[0]
	shutdown, err := time.ParseDuration(variable(t, container, "SHUTDOWN_TIMEOUT").Value)
	if err != nil {
		t.Fatal(err)
	}
	sleep := time.Duration(container.Lifecycle.PreStop.Sleep.Seconds) * time.Second
	if grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second; sleep == 0 || grace <= sleep+shutdown {
		t.Errorf("grace period %s, want more than preStop %s (not 0) plus SHUTDOWN_TIMEOUT %s", grace, sleep, shutdown)
	}
	if *deployment.Spec.Replicas < 2 || deployment.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 {
		t.Error("a rollout may stop all instances")
	}
	if most := one[*policyv1.PodDisruptionBudget](t, base).Spec.MaxUnavailable.IntValue(); most >= int(*deployment.Spec.Replicas) {
		t.Error("the disruption budget allows to evict all instances")
	}
}

// The manifests contain no secret. Each pod reads URL and password from one Secret of the operator,
// as an environment variable and as a file.
func TestSecrets(t *testing.T) {
	t.Parallel()
	for name, template := range templates(t) {
		container, volume := template.Spec.Containers[0], template.Spec.Volumes[0]
		from := variable(t, container, "DATABASE_URL").ValueFrom.SecretKeyRef
		if from == nil || from.Key != "url" || volume.Secret == nil || volume.Secret.SecretName != from.Name {
			t.Errorf("%s: DATABASE_URL and the password are not from the same Secret", name)
			continue
		}
		mount := container.VolumeMounts[0]
		if file := variable(t, container, "DATABASE_PASSWORD_FILE").Value; mount.Name != volume.Name || file != mount.MountPath+"/password" {
			t.Errorf("%s: DATABASE_PASSWORD_FILE is %s, which is not in the mounted Secret", name, file)
		}
		// The file is owned by root, so the pod reads it as its group.
		if mode := *volume.Secret.DefaultMode; mode != 0o440 || *template.Spec.SecurityContext.FSGroup != *template.Spec.SecurityContext.RunAsGroup {
			t.Errorf("%s: the password's mode is %o, want 440 with the pod's group as fsGroup", name, mode)
		}
	}
}

// Settings, commands, paths, port and user in the manifests are those of the service and its image.
func TestNames_matchTheService(t *testing.T) {
	t.Parallel()
	contract, image := read(t, "openapi.yaml"), read(t, "Dockerfile")
	for name, template := range templates(t) {
		container := template.Spec.Containers[0]
		help := helpOf(t, container.Args[0])
		for _, v := range container.Env {
			if !strings.Contains(help, v.Name) {
				t.Errorf("%s: %s is not a setting of coupond %s", name, v.Name, container.Args[0])
			}
		}
		for _, probe := range []*corev1.Probe{container.LivenessProbe, container.ReadinessProbe} {
			if probe != nil && !strings.Contains(contract, "\n  "+probe.HTTPGet.Path+":\n") {
				t.Errorf("%s: unknown path %s", name, probe.HTTPGet.Path)
			}
		}
		if !strings.Contains(image, "\nUSER 65532:65532\n") || *template.Spec.SecurityContext.RunAsUser != 65532 {
			t.Errorf("%s: the user is not the user of the image, 65532", name)
		}
	}
	container := one[*appsv1.Deployment](t, render(t, "base")).Spec.Template.Spec.Containers[0]
	if container.LivenessProbe == nil || container.ReadinessProbe == nil {
		t.Error("no liveness or no readiness probe")
	}
	if address := variable(t, container, "LISTEN_ADDR").Value; address != ":8080" || container.Ports[0].ContainerPort != 8080 {
		t.Errorf("LISTEN_ADDR is %s and the container port is %d, want 8080 in both", address, container.Ports[0].ContainerPort)
	}
}

// The image of the base has no registry and no tag, and the overlay replaces it everywhere.
func TestImages(t *testing.T) {
	t.Parallel()
	for name, template := range templates(t) {
		if image := template.Spec.Containers[0].Image; !regexp.MustCompile(`^[a-z-]+$`).MatchString(image) {
			t.Errorf("%s: the image of the base is %s, want a name without registry and tag", name, image)
		}
	}
	example := render(t, "example")
	for _, template := range []corev1.PodTemplateSpec{one[*appsv1.Deployment](t, example).Spec.Template, one[*batchv1.Job](t, example).Spec.Template} {
		if image := template.Spec.Containers[0].Image; image != "your-registry/coupond:v1.0.0" {
			t.Errorf("the image of the example is %s, want your-registry/coupond:v1.0.0", image)
		}
	}
	for _, object := range example {
		if namespace := object.(metav1.Object).GetNamespace(); namespace != "coupond" {
			t.Errorf("%T is in namespace %q, want coupond", object, namespace)
		}
	}
}

// templates returns the pod templates of the base, by the kind of their owner.
func templates(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	base := render(t, "base")
	return map[string]corev1.PodTemplateSpec{
		"deployment": one[*appsv1.Deployment](t, base).Spec.Template,
		"job":        one[*batchv1.Job](t, base).Spec.Template,
	}
}

// variable returns an environment variable of a container.
func variable(t *testing.T, container corev1.Container, name string) corev1.EnvVar {
	t.Helper()
	for _, v := range container.Env {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("container %s: %s is not set", container.Name, name)
	return corev1.EnvVar{}
}

// helpOf returns the help of a command of coupond. The command must exist.
func helpOf(t *testing.T, command string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./cmd/coupond", command, "--help")
	cmd.Dir = "../../.."
	help, err := cmd.Output()
	if err != nil {
		t.Fatalf("coupond %s --help: %v", command, err)
	}
	return string(help)
}

// read returns the content of a file of the repository.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile("../../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
