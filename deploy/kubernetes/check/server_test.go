package check_test

import (
	"errors"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/batch"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// render renders a folder like `kubectl kustomize`, and decodes the result as strictly as the API
// server does for `kubectl apply`.
func render(t *testing.T, folder string) []runtime.Object {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "../"+folder)
	if err != nil {
		t.Fatal(err)
	}
	var objects []runtime.Object
	for _, resource := range resources.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		object, err := decode(text)
		if err != nil {
			t.Fatalf("%s: %s: %v", folder, resource.CurId(), err)
		}
		objects = append(objects, object)
	}
	return objects
}

// decode decodes an object. Unknown and duplicate fields are errors.
func decode(text []byte) (runtime.Object, error) {
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, legacyscheme.Scheme, legacyscheme.Scheme,
		json.SerializerOptions{Yaml: true, Strict: true})
	object, _, err := strict.Decode(text, nil, nil)
	return object, err
}

// validate returns the errors for which the API server would reject the creation of object.
func validate(t *testing.T, object runtime.Object) []error {
	t.Helper()
	object = object.DeepCopyObject()
	named := object.(metav1.Object)
	if named.GetNamespace() == "" {
		named.SetNamespace("default") // the server takes it from the request
	}
	if job, ok := object.(*batchv1.Job); ok {
		setGenerated(job)
	}
	legacyscheme.Scheme.Default(object)
	internal, err := legacyscheme.Scheme.ConvertToVersion(object, runtime.InternalGroupVersioner)
	if err != nil {
		t.Fatal(err)
	}
	var list field.ErrorList
	switch o := internal.(type) {
	case *apps.Deployment:
		list = appsvalidation.ValidateDeployment(o, pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *batch.Job:
		list = batchvalidation.ValidateJob(o, batchvalidation.JobValidationOptions{
			PodValidationOptions:  pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil),
			RequirePrefixedLabels: true,
		})
	case *core.Service:
		list = corevalidation.ValidateServiceCreate(o)
	case *policy.PodDisruptionBudget:
		list = policyvalidation.ValidatePodDisruptionBudget(o, policyvalidation.PodDisruptionBudgetValidationOptions{})
	default:
		return []error{errors.New("no validation for " + object.GetObjectKind().GroupVersionKind().String())}
	}
	var all []error
	for _, err := range list {
		all = append(all, err)
	}
	return all
}

// setGenerated sets what the server sets when a Job is created: a UID, and labels that select its
// pods.
func setGenerated(job *batchv1.Job) {
	job.UID = "00000000-0000-0000-0000-000000000000"
	job.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: string(job.UID)}}
	for _, label := range []string{batch.LegacyJobNameLabel, batchv1.JobNameLabel} {
		job.Spec.Template.Labels[label] = job.Name
	}
	for _, label := range []string{batch.LegacyControllerUidLabel, batchv1.ControllerUidLabel} {
		job.Spec.Template.Labels[label] = string(job.UID)
	}
}

// one returns the only object of type T.
func one[T runtime.Object](t *testing.T, objects []runtime.Object) (only T) {
	t.Helper()
	found := 0
	for _, object := range objects {
		if o, ok := object.(T); ok {
			only, found = o, found+1
		}
	}
	if found != 1 {
		t.Fatalf("%d objects of type %T, want 1", found, only)
	}
	return only
}
