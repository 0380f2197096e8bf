// The classic webhook: gin, the review and the pod decoded with Kubernetes' types, a patch encoded.
//
// Usage: gin CERT KEY PORT
package main

import (
	"encoding/json"
	"net/http"
	"os"

	"github.com/gin-gonic/gin"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

const label, team = "example.com/team", "shop"

type operation struct {
	Op    string      `json:"op"`
	Path  string      `json:"path"`
	Value interface{} `json:"value,omitempty"`
}

var decoder runtime.Decoder

func main() {
	scheme := runtime.NewScheme()
	_ = admissionv1.AddToScheme(scheme)
	_ = corev1.AddToScheme(scheme)
	decoder = serializer.NewCodecFactory(scheme).UniversalDeserializer()
	gin.SetMode(gin.ReleaseMode)
	router := gin.Default()
	router.POST("/mutate", func(c *gin.Context) { answer(c, labelled) })
	router.POST("/validate", func(c *gin.Context) { answer(c, passed) })
	if err := router.RunTLS("127.0.0.1:"+os.Args[3], os.Args[1], os.Args[2]); err != nil {
		panic(err)
	}
}

func answer(c *gin.Context, admit func(*admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error)) {
	body, err := c.GetRawData()
	if err != nil {
		c.String(http.StatusBadRequest, err.Error())
		return
	}
	review := admissionv1.AdmissionReview{}
	if _, _, err := decoder.Decode(body, nil, &review); err != nil || review.Request == nil {
		c.String(http.StatusBadRequest, "not an AdmissionReview")
		return
	}
	response, err := admit(review.Request)
	if err != nil {
		response = &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: err.Error()}}
	}
	response.UID = review.Request.UID
	review.Request, review.Response = nil, response
	c.JSON(http.StatusOK, review)
}

func passed(request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	return &admissionv1.AdmissionResponse{Allowed: true}, nil
}

func labelled(request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	var labels map[string]string
	if request.Kind.Kind == "Namespace" {
		namespace := corev1.Namespace{}
		if err := json.Unmarshal(request.Object.Raw, &namespace); err != nil {
			return nil, err
		}
		labels = namespace.Labels
	} else {
		pod := corev1.Pod{}
		if err := json.Unmarshal(request.Object.Raw, &pod); err != nil {
			return nil, err
		}
		labels = pod.Labels
	}
	patch, err := json.Marshal(patchFor(labels))
	if err != nil {
		return nil, err
	}
	kind := admissionv1.PatchTypeJSONPatch
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: patch, PatchType: &kind}, nil
}

func patchFor(labels map[string]string) []operation {
	if labels == nil {
		return []operation{{"add", "/metadata/labels", map[string]string{label: team}}}
	}
	if _, there := labels[label]; there {
		return []operation{}
	}
	return []operation{{"add", "/metadata/labels/example.com~1team", team}}
}
