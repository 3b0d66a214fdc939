(* T09. Activation-aware SVD is the global optimum of low rank; C may be singular. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T01_low_rank.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section WeightedLowRank.
Variables (R : realFieldType) (m n k p r : nat) (W : 'M[R]_(m, n)) (C : 'M[R]_n) (S : 'M[R]_(n, k)).
Hypothesis factored : C = S *m S^T.

(* f(T) = 1/2 ||W S - T S||^2 *)
Lemma objective_factored T : objective W C T = sqnorm (W *m S - T *m S) / 2%:R.
Proof. by rewrite /objective /form factored -mulmxBl /sqnorm /dot trmx_mul !mulmxA. Qed.

(* The reduction: whatever T of rank at most r maps S onto a nearest matrix to W S is optimal. *)
Theorem weighted_reduction T : nearest (fun B : 'M_(m, k) => \rank B <= r)%N (W *m S) (T *m S) ->
  forall T', (\rank T' <= r)%N -> objective W C T <= objective W C T'.
Proof.
move=> [_ near] T' rankT'; rewrite !objective_factored ler_pmul2r ?invr_gt0 ?ltr0n // near //.
exact: leq_trans (mxrankM_maxl _ _) rankT'.
Qed.

(* The singular value decomposition of W S *)
Variables (U : 'M[R]_(m, p)) (V : 'M[R]_(k, p)) (sigma : 'I_p -> R).
Hypotheses (orthU : U^T *m U = 1%:M) (orthV : V^T *m V = 1%:M) (svd : W *m S = Z U V sigma).
Hypotheses (sigma_ge0 : forall i, 0 <= sigma i) (descending : forall i j : 'I_p, (i <= j)%N -> sigma j <= sigma i).

(* U_r U_r^T, U_r the first r columns of U *)
Definition leading := U *m diagonal (cut r (fun _ => 1)) *m U^T.
Definition asvd := leading *m W.

Lemma leading_WS : leading *m (W *m S) = truncated r U V sigma.
Proof.
rewrite svd /leading /Z /truncated !mulmxA -(mulmxA _ U^T) orthU mulmx1 -(mulmxA U); congr (_ *m _ *m _).
apply/matrixP => i j; rewrite mul_diag_mx !mxE; case: eqP => [->|]; rewrite ?mulr0 //.
by rewrite /cut; case: ifP; rewrite ?mul1r ?mul0r.
Qed.

(* (a), (b) *)
Theorem asvd_rank : (\rank asvd <= r)%N.
Proof. by rewrite /asvd /leading -mulmxA cut_rank. Qed.

Theorem asvd_value : objective W C asvd = (\sum_(i < p | (r <= i)%N) sigma i ^+ 2) / 2%:R.
Proof. by rewrite objective_factored /asvd -mulmxA leading_WS svd truncated_distance. Qed.

Theorem asvd_optimal T : (\rank T <= r)%N -> objective W C asvd <= objective W C T.
Proof.
move=> rankT; apply: weighted_reduction rankT.
by rewrite /asvd -mulmxA leading_WS svd; apply: eckart_young.
Qed.

(* (c) If sigma_r > sigma_(r+1), minimisers agree on the range of S: they differ by N with N C = 0. *)
Definition minimiser T := (\rank T <= r)%N /\ forall T', (\rank T' <= r)%N -> objective W C T <= objective W C T'.

Theorem minimisers T : (forall i j : 'I_p, (i < r <= j)%N -> sigma j < sigma i) -> minimiser T ->
  T *m S = truncated r U V sigma.
Proof.
move=> gap [rankT least]; apply: (eckart_young_unique orthU orthV sigma_ge0 descending gap); rewrite -svd.
split=> [|B rankB]; first exact: leq_trans (mxrankM_maxl _ _) rankT.
have [_ near] := eckart_young r orthU orthV sigma_ge0 descending.
apply: (@le_trans _ _ (sqnorm (W *m S - truncated r U V sigma))); last by rewrite svd near.
by have := least _ asvd_rank; rewrite !objective_factored ler_pmul2r ?invr_gt0 ?ltr0n // /asvd -mulmxA leading_WS.
Qed.

Corollary minimisers_differ T T' : (forall i j : 'I_p, (i < r <= j)%N -> sigma j < sigma i) ->
  minimiser T -> minimiser T' -> (T - T') *m C = 0.
Proof. by move=> gap minT minT'; rewrite factored mulmxA mulmxBl !minimisers // subrr mul0mx. Qed.

(* (b), the other form: [W S]_r S^+. All that is used of the pseudo-inverse is S S^+ S = S. *)
Variable S_plus : 'M[R]_(k, n).
Hypothesis pseudo_inverse : S *m S_plus *m S = S.
Definition asvd_pinv := truncated r U V sigma *m S_plus.

Lemma asvd_pinvE : asvd_pinv = asvd *m (S *m S_plus).
Proof. by rewrite /asvd_pinv -leading_WS /asvd !mulmxA. Qed.

Theorem asvd_pinv_optimal T : (\rank T <= r)%N -> objective W C asvd_pinv <= objective W C T.
Proof.
suff -> : objective W C asvd_pinv = objective W C asvd by apply: asvd_optimal.
by rewrite !objective_factored asvd_pinvE -(mulmxA asvd) pseudo_inverse.
Qed.

Theorem asvd_pinv_rank : (\rank asvd_pinv <= r)%N.
Proof. by rewrite asvd_pinvE (leq_trans (mxrankM_maxl _ _)) ?asvd_rank. Qed.

Theorem same_modulo_null : (asvd - asvd_pinv) *m C = 0.
Proof. by rewrite asvd_pinvE factored mulmxA mulmxBl -(mulmxA asvd) pseudo_inverse subrr mul0mx. Qed.

End WeightedLowRank.

(* (d) Junction form: r columns of the right factor become an identity. *)
Section Junction.
Variables (R : realFieldType) (m n r : nat) (B : 'M[R]_(m, r)) (A : 'M[R]_(r, n)) (c : 'I_r -> 'I_n).
Let J := colsub c A.
Hypothesis J_unit : J \in unitmx.

Theorem junction_product : B *m A = (B *m J) *m (invmx J *m A).
Proof. by rewrite mulmxA mulmxK. Qed.

Theorem junction_identity : colsub c (invmx J *m A) = 1%:M.
Proof. by rewrite -(mulVmx J_unit); apply/matrixP => i j; rewrite !mxE; apply: eq_bigr => l _; rewrite !mxE. Qed.
End Junction.
