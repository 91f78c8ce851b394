# `helm test`: whether a pod of this service account becomes the role that is associated with it. Everything on the way
# is real: EKS's webhook, the agent, EKS Auth, STS. Needs a POSIX shell and the AWS CLI.
set -u

fail() {
  echo "FAILED: $1" >&2
  exit 1
}

[ -n "${TEST_SERVICE_ACCOUNT:-}" ] ||
  fail "set test.serviceAccountName to a service account of this namespace that has a pod identity association"

case "${AWS_CONTAINER_CREDENTIALS_FULL_URI:-}" in
  http://169.254.170.23/v1/credentials | 'http://[fd00:ec2::23]/v1/credentials') ;;
  '') fail "EKS has not set this pod up: service account $TEST_SERVICE_ACCOUNT had no association when the pod was made" ;;
  *) fail "AWS_CONTAINER_CREDENTIALS_FULL_URI is $AWS_CONTAINER_CREDENTIALS_FULL_URI: something else sets this pod up" ;;
esac

# Every other way to credentials is closed: the node's role would pass for the pod's.
export AWS_EC2_METADATA_DISABLED=true
unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE AWS_DEFAULT_PROFILE \
  AWS_WEB_IDENTITY_TOKEN_FILE AWS_ROLE_ARN AWS_CONTAINER_CREDENTIALS_RELATIVE_URI

arn=$(aws sts get-caller-identity --query Arn --output text) ||
  fail "no credentials, or credentials that STS does not take; what the agent says is above"
echo "PASSED: service account $TEST_SERVICE_ACCOUNT is $arn"
